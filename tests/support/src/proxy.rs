//! Owns a TCP proxy in front of a broker, and the troubles that it makes for connections.
//!
//! Each connection has two threads, one a direction. They look at the trouble of the moment at
//! least every [`LOOK`], so a trouble reaches old connections as well as new ones.

use crate::wire::{Filter, Frames, Wire};
use rustix::net::sockopt::set_socket_linger;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a thread may go without looking at the trouble.
const LOOK: Duration = Duration::from_millis(20);
/// What a slow connection may hold, as a router on the way would.
const HELD_BYTES_MAX: usize = 1 << 20;

/// What is wrong with the way to the broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Nothing.
    None,
    /// Nobody listens: open connections are reset, new ones refused.
    Refuse,
    /// Connections are accepted, by the system at least, and no byte goes either way. What was
    /// sent arrives when the trouble ends.
    Hang,
    /// No byte goes either way, and new connections get no answer at all: their first packets are
    /// dropped.
    Drop,
    /// Requests arrive, answers don't. The connections are reset when it ends.
    SwallowAnswers,
    /// Answers to requests with this API key don't arrive, all others do. Connections that were
    /// there before it begins or ends are reset.
    SwallowAnswersTo(i16),
    /// Metadata names no broker. Connections as above.
    NoBrokers,
    /// Metadata says of every topic that there is none. Connections as above.
    NoTopics,
    /// Each connection is reset when it is so old.
    Reset(Duration),
    /// Answers come so much later.
    Latency(Duration),
    /// So many bytes a second, for each connection and direction.
    Bandwidth(u64),
}

impl Trouble {
    fn is_frozen(self) -> bool {
        matches!(self, Trouble::Hang | Trouble::Drop)
    }

    fn filter(self) -> Option<Filter> {
        match self {
            Trouble::SwallowAnswersTo(key) => Some(Filter::Swallow(key)),
            Trouble::NoBrokers => Some(Filter::NoBrokers),
            Trouble::NoTopics => Some(Filter::NoTopics),
            _ => None,
        }
    }
}

/// A proxy that lives as long as this.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    trouble: Mutex<Trouble>,
    /// The trouble that the listening thread has taken up.
    taken: Mutex<Trouble>,
    /// Where it listens.
    ip: AtomicU32,
    upstream: AtomicU16,
    ended: AtomicBool,
    connections: AtomicU64,
    /// Connections that haven't ended yet.
    open: AtomicU64,
    resets: AtomicU64,
    swallowed_bytes: AtomicU64,
    spoilt_answers: AtomicU64,
    passed_bytes: AtomicU64,
    accepted: Mutex<Option<Instant>>,
}

impl Shared {
    fn trouble(&self) -> Trouble {
        *self.trouble.lock().expect("no thread panics with it")
    }

    fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.ip.load(Relaxed))
    }
}

impl Proxy {
    /// Listens on `port` and passes connections on to `upstream`, both of this machine.
    pub(crate) fn start(port: u16, upstream: u16) -> Result<Proxy, String> {
        let shared = Arc::new(Shared {
            trouble: Mutex::new(Trouble::None),
            taken: Mutex::new(Trouble::None),
            ip: AtomicU32::new(Ipv4Addr::LOCALHOST.to_bits()),
            upstream: AtomicU16::new(upstream),
            ended: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            swallowed_bytes: AtomicU64::new(0),
            spoilt_answers: AtomicU64::new(0),
            passed_bytes: AtomicU64::new(0),
            accepted: Mutex::new(None),
        });
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = listen(at).map_err(|e| format!("the proxy's port {port}: {e}"))?;
        let own = shared.clone();
        spawn("proxy-listen", move || accept_all(port, listener, &own));
        Ok(Proxy { port, shared })
    }

    /// `host:port` of the proxy, for clients.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:{}", self.shared.ip(), self.port)
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Leaves its address for another one of this machine: open connections are reset, and the
    /// old address refuses.
    ///
    /// # Panics
    /// When a connection doesn't end.
    pub fn move_to(&self, ip: Ipv4Addr) {
        self.make(Trouble::Refuse);
        // Each connection sees for itself that it is refused.
        let start = Instant::now();
        while self.shared.open.load(Relaxed) > 0 {
            assert!(start.elapsed() < Duration::from_secs(30), "a connection doesn't end");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.shared.ip.store(ip.to_bits(), Relaxed);
        self.make(Trouble::None);
    }

    /// Makes trouble, or ends it; it is there for every new connection when this returns.
    ///
    /// # Panics
    /// When the port can't be taken again.
    pub fn make(&self, trouble: Trouble) {
        *self.shared.trouble.lock().expect("no thread panics with it") = trouble;
        let start = Instant::now();
        while *self.shared.taken.lock().expect("no thread panics with it") != trouble {
            assert!(start.elapsed() < Duration::from_secs(30), "the proxy doesn't follow");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// New connections go to another port from now on.
    pub fn lead_to(&self, upstream: u16) {
        self.shared.upstream.store(upstream, Relaxed);
    }

    /// Connections that came so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Relaxed)
    }

    /// Connections that the proxy reset.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.shared.resets.load(Relaxed)
    }

    /// Bytes of answers that were thrown away.
    #[must_use]
    pub fn swallowed_bytes(&self) -> u64 {
        self.shared.swallowed_bytes.load(Relaxed)
    }

    /// Answers that were swallowed, or changed, by what they answer.
    #[must_use]
    pub fn spoilt_answers(&self) -> u64 {
        self.shared.spoilt_answers.load(Relaxed)
    }

    /// Bytes that went through, both directions.
    #[must_use]
    pub fn passed_bytes(&self) -> u64 {
        self.shared.passed_bytes.load(Relaxed)
    }

    /// When the last connection to the broker was made.
    #[must_use]
    pub fn last_connected(&self) -> Option<Instant> {
        *self.shared.accepted.lock().expect("no thread panics with it")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Relaxed);
    }
}

fn listen(at: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).expect("a thread");
}

fn accept_all(port: u16, listener: TcpListener, shared: &Arc<Shared>) {
    let mut listener = Some(listener);
    // Connections that fill the queue of a listener that drops packets.
    let mut fillers = Vec::new();
    let mut before = Trouble::None;
    while !shared.ended.load(Relaxed) {
        let trouble = shared.trouble();
        if trouble != before {
            if trouble == Trouble::Refuse || before == Trouble::Drop {
                // What waits to be accepted is reset with it.
                listener = None;
                fillers.clear();
            }
            before = trouble;
        }
        if trouble == Trouble::Refuse {
            *shared.taken.lock().expect("no thread panics with it") = trouble;
            std::thread::sleep(LOOK);
            continue;
        }
        let Some(open) = &listener else {
            // Right after its end a port may be busy for a moment.
            listener = listen(SocketAddr::from((shared.ip(), port))).ok();
            if listener.is_none() {
                std::thread::sleep(LOOK);
            }
            continue;
        };
        if trouble == Trouble::Drop && fillers.is_empty() {
            fillers = fill(open, SocketAddr::from((shared.ip(), port)));
        }
        *shared.taken.lock().expect("no thread panics with it") = trouble;
        if trouble == Trouble::Drop {
            // Accepting would make room in the queue.
            std::thread::sleep(LOOK);
            continue;
        }
        match open.accept() {
            Ok((client, _)) => {
                shared.connections.fetch_add(1, Relaxed);
                shared.open.fetch_add(1, Relaxed);
                let own = shared.clone();
                spawn("proxy-connect", move || {
                    connect(client, &own);
                    own.open.fetch_sub(1, Relaxed);
                });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Fills the listener's queue, so that the system drops the first packet of whoever comes next.
fn fill(listener: &TcpListener, address: SocketAddr) -> Vec<TcpStream> {
    let mut fillers = Vec::new();
    if rustix::net::listen(listener, 0).is_ok() {
        // One that gets no answer in time may be the machine's fault, several in a row are not.
        let mut unanswered = 0;
        // A bound for the case that the system doesn't drop at all.
        while unanswered < 3 && fillers.len() < 5_000 {
            match TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
                Ok(filler) => {
                    fillers.push(filler);
                    unanswered = 0;
                }
                Err(_) => unanswered += 1,
            }
        }
    }
    fillers
}

/// One connection through the proxy.
struct Way {
    client: TcpStream,
    broker: TcpStream,
    born: Instant,
    spoiled: AtomicBool,
    ended: AtomicBool,
    wire: Option<Wire>,
}

fn connect(client: TcpStream, shared: &Arc<Shared>) {
    while shared.trouble().is_frozen() {
        if shared.ended.load(Relaxed) {
            return;
        }
        std::thread::sleep(LOOK);
    }
    // A broker that is gone shows as a connection that ends at once.
    let upstream = shared.upstream.load(Relaxed);
    let Ok(broker) = TcpStream::connect(("127.0.0.1", upstream)) else { return };
    *shared.accepted.lock().expect("no thread panics with it") = Some(Instant::now());
    for stream in [&client, &broker] {
        let _ = stream.set_nonblocking(false);
        let _ = stream.set_nodelay(true);
        let _ = stream.set_write_timeout(Some(LOOK));
    }
    let (spoiled, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let wire = shared.trouble().filter().map(Wire::new);
    let way = Arc::new(Way { client, broker, born: Instant::now(), spoiled, ended, wire });
    let (own, other) = (way.clone(), shared.clone());
    spawn("proxy-up", move || pump(&own, true, &other));
    pump(&way, false, shared);
}

/// Moves the bytes of one direction until the connection ends.
fn pump(way: &Way, up: bool, shared: &Shared) {
    let (from, to) = if up { (&way.client, &way.broker) } else { (&way.broker, &way.client) };
    let (mut from, mut to) = (from, to);
    let mut held: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut held_bytes = 0;
    let mut free_at = Instant::now();
    let mut bytes = vec![0; 16 << 10];
    let mut frames = Frames::default();
    while !way.ended.load(Relaxed) {
        let trouble = shared.trouble();
        let too_old = matches!(trouble, Trouble::Reset(age) if way.born.elapsed() > age);
        let spoiled = trouble != Trouble::SwallowAnswers && way.spoiled.load(Relaxed);
        let spoiled = spoiled || trouble.filter() != way.wire.as_ref().map(|w| w.filter);
        if shared.ended.load(Relaxed) || trouble == Trouble::Refuse || too_old || spoiled {
            reset(way, shared);
            break;
        }
        if trouble.is_frozen() {
            std::thread::sleep(LOOK);
            continue;
        }
        let now = Instant::now();
        while held.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            let Some((_, chunk)) = held.pop_front() else { break };
            held_bytes -= chunk.len();
            if !write(&mut to, &chunk, way) {
                way.ended.store(true, Relaxed);
                break;
            }
            shared.passed_bytes.fetch_add(chunk.len() as u64, Relaxed);
        }
        let next = held.front().map_or(LOOK, |(due, _)| due.saturating_duration_since(now));
        let wait = next.clamp(Duration::from_millis(1), LOOK);
        if held_bytes >= HELD_BYTES_MAX {
            std::thread::sleep(wait);
            continue;
        }
        let _ = from.set_read_timeout(Some(wait));
        let count = match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if is_late(&e) => continue,
            Err(_) => break,
        };
        if !up && shared.trouble() == Trouble::SwallowAnswers {
            way.spoiled.store(true, Relaxed);
            shared.swallowed_bytes.fetch_add(count as u64, Relaxed);
            continue;
        }
        // As it is now: it may have begun while this waited for bytes.
        let due = match shared.trouble() {
            Trouble::Latency(by) if !up => Instant::now() + by,
            Trouble::Bandwidth(bytes_per_s) => {
                let takes = Duration::from_secs_f64(count as f64 / bytes_per_s.max(1) as f64);
                free_at = free_at.max(Instant::now()) + takes;
                free_at
            }
            _ => Instant::now(),
        };
        let chunk = match &way.wire {
            Some(wire) if up => {
                wire.asks(&mut frames, &bytes[..count]);
                bytes[..count].to_vec()
            }
            Some(wire) => {
                let (passed, spoilt) = wire.answers(&mut frames, &bytes[..count]);
                shared.spoilt_answers.fetch_add(spoilt, Relaxed);
                passed
            }
            None => bytes[..count].to_vec(),
        };
        held_bytes += chunk.len();
        held.push_back((due, chunk));
    }
    // The other direction ends too, and with it the sockets.
    way.ended.store(true, Relaxed);
}

fn reset(way: &Way, shared: &Shared) {
    if !way.ended.swap(true, Relaxed) {
        shared.resets.fetch_add(1, Relaxed);
        // The last close then sends a reset, not an end.
        let _ = set_socket_linger(&way.client, Some(Duration::ZERO));
    }
}

/// Writes all of it, however long that takes; false when the connection ends.
fn write(to: &mut &TcpStream, mut bytes: &[u8], way: &Way) -> bool {
    while !bytes.is_empty() && !way.ended.load(Relaxed) {
        match to.write(bytes) {
            Ok(0) => return false,
            Ok(count) => bytes = &bytes[count..],
            Err(e) if is_late(&e) => {}
            Err(_) => return false,
        }
    }
    bytes.is_empty()
}

fn is_late(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
