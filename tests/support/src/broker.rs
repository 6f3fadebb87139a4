//! Owns a real broker: how it starts, its faults, its end.

use crate::home::{self, Home};
use crate::oracle::Oracle;
use crate::secure::{DOORS, Secure};
use crate::{Random, process};
use rustix::process::Signal;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const START_LIMIT: Duration = Duration::from_secs(180);
/// Ports are drawn below the range that the kernel gives to outgoing connections.
const PORTS: (u64, u64) = (12_000, 32_000);

/// What differs from a plain single broker.
#[derive(Clone, Debug, Default)]
pub struct KafkaOptions {
    /// Topics come into being when they are first used, with so many partitions.
    /// `None`, the default: an unknown topic is an error.
    pub auto_create_partitions: Option<u32>,
    /// Locked doors beside the open one: TLS, SASL, ACLs; see [`crate::Door`].
    pub secure: bool,
    /// More broker settings; they win over the harness's own.
    pub properties: Vec<(String, String)>,
}

/// A real Apache Kafka, one combined node, or an existing cluster; dropped, it is killed.
#[derive(Debug)]
pub struct Kafka {
    brokers: String,
    oracle: Oracle,
    dir: PathBuf,
    /// `None` for an existing cluster: it can't be faulted.
    node: Option<Node>,
    secure: Option<Secure>,
}

/// One process of a cluster, and how often it was started.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) home: Home,
    pub(crate) cluster_id: String,
    /// `None` while it is down.
    pub(crate) child: Option<Child>,
    pub(crate) starts: u32,
}

impl Kafka {
    /// Starts a broker of its own for a test. `None`, said loudly, where there is no Kafka to
    /// be had.
    ///
    /// # Panics
    /// When Kafka is there, or required, and doesn't start.
    #[must_use]
    pub fn start(options: KafkaOptions) -> Option<Kafka> {
        let home = match home::home() {
            Ok(home) => home,
            Err(reason) => {
                home::skip(reason);
                return None;
            }
        };
        let mut last = String::new();
        // Another process may take the ports between the look and the start.
        for _ in 0..3 {
            let broker = home.java("broker.jsa");
            match Kafka::start_with(home, &options, broker, home.java("oracle.jsa")) {
                Ok(kafka) => return Some(kafka),
                Err(reason) => last = reason,
            }
        }
        panic!("Kafka did not start: {last}");
    }

    /// One cluster for all tests of this process that need no fault: the one that
    /// `FOREBAY_TEST_BROKERS` names, else a broker of our own.
    #[must_use]
    pub fn shared() -> Option<&'static Kafka> {
        static SHARED: OnceLock<Option<Kafka>> = OnceLock::new();
        let kafka = SHARED.get_or_init(|| {
            let Ok(brokers) = std::env::var("FOREBAY_TEST_BROKERS") else {
                return Kafka::start(KafkaOptions::default());
            };
            let home = home::home().map_err(home::skip).ok()?;
            let dir = home.run_dir().expect("a directory under target/kafka");
            let oracle = Oracle::start(home.java("oracle.jsa"), &brokers, &dir);
            let oracle = oracle.expect("the oracle starts");
            let id = oracle.cluster_id();
            assert!(id.is_ok(), "FOREBAY_TEST_BROKERS={brokers}: {id:?}");
            Some(Kafka { brokers, oracle, dir, node: None, secure: None })
        });
        if kafka.is_none() {
            home::home().map_err(home::skip).err();
        }
        kafka.as_ref()
    }
    /// Formats a directory and starts a broker on it with the command `broker`.
    pub(crate) fn start_with(
        home: &Home,
        options: &KafkaOptions,
        broker: Command,
        oracle: Command,
    ) -> Result<Kafka, String> {
        let dir = home.run_dir().map_err(|e| format!("a directory under target/kafka: {e}"))?;
        let mut random = Random::new(crate::seed());
        // The broker's, the controller's, and as many as there are doors.
        let doors = if options.secure { DOORS } else { 0 };
        let port = free_ports(&mut random, 2 + doors)?;
        let controller = port + 1;
        let cluster_id = cluster_id(&mut random);
        let secure = options.secure.then(|| Secure::new(&dir, controller + 1)).transpose()?;
        let settings = properties(&dir, port, controller, options, secure.as_ref());
        let file = dir.join("broker.properties");
        fs::write(&file, settings).map_err(|e| format!("{}: {e}", file.display()))?;
        let mut format = home.java("broker.jsa");
        format.arg(format!("-Dkafka.log={}", dir.join("format.log").display()));
        format.args(["kafka.tools.StorageTool", "format", "--standalone", "-t", &cluster_id]);
        if options.secure {
            format.args(Secure::format_arguments());
        }
        format.arg("-c");
        let out = format.arg(&file).output().map_err(|e| format!("java: {e}"))?;
        if !out.status.success() {
            return Err(format!("format: {}", String::from_utf8_lossy(&out.stderr)));
        }
        let brokers = format!("127.0.0.1:{port}");
        let mut node = Node { home: home.clone(), cluster_id, child: None, starts: 0 };
        node.launch(&dir, broker)?;
        // The oracle's JVM starts beside the broker's.
        let oracle = Oracle::start(oracle, &brokers, &dir)?;
        let mut kafka = Kafka { brokers, oracle, dir, node: Some(node), secure };
        kafka.wait_until_ready()?;
        Ok(kafka)
    }

    /// `host:port` of the broker, for clients.
    #[must_use]
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Says what is really in this cluster.
    #[must_use]
    pub fn oracle(&self) -> &Oracle {
        &self.oracle
    }

    /// A new topic with a name that no other test uses.
    #[must_use]
    pub fn topic(&self, name: &str, partitions: u32) -> String {
        self.topic_with(name, partitions, &[])
    }

    /// The same, with settings such as `max.message.bytes`.
    #[must_use]
    pub fn topic_with(&self, name: &str, partitions: u32, configs: &[(&str, &str)]) -> String {
        let topic = format!("{name}-{:08x}", Random::new(crate::seed()).number() as u32);
        self.oracle.create_topic(&topic, partitions, configs).expect("the topic is made");
        topic
    }

    /// Stops the broker's process where it stands (SIGSTOP): its sockets stay open and silent.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
        wait_until_stopped(self.pid());
    }

    /// Lets a paused broker go on (SIGCONT).
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    /// Kills the broker (SIGKILL); connections are refused from now on.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait_for_end();
    }

    /// Ends the broker in good order (SIGTERM).
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.wait_for_end();
    }

    /// Starts it again on the same port and data after `kill` or `stop`; gives the time that
    /// took.
    pub fn restart(&mut self) -> Duration {
        let start = Instant::now();
        let dir = self.dir.clone();
        let node = self.node_mut();
        assert!(node.child.is_none(), "the broker still runs");
        let java = node.home.java("broker.jsa");
        node.launch(&dir, java).expect("the broker starts");
        self.wait_until_ready().expect("the broker is ready");
        start.elapsed()
    }

    /// The bytes in the topic's log on the broker's disk. It can be asked while the broker is
    /// paused, and proves that nothing was appended meanwhile.
    #[must_use]
    pub fn log_bytes(&self, topic: &str) -> u64 {
        assert!(self.node.is_some(), "an existing cluster's disk can't be seen");
        log_bytes(&self.dir.join("data"), topic)
    }

    /// What the locked doors are made of.
    pub(crate) fn secure(&self) -> &Secure {
        self.secure.as_ref().expect("a broker that was started with `secure`")
    }

    /// The broker's process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        let child = self.node.as_ref().and_then(|n| n.child.as_ref());
        child.expect("a broker of our own that runs").id()
    }

    fn node_mut(&mut self) -> &mut Node {
        self.node.as_mut().expect("a fault needs a broker of our own")
    }

    fn signal(&mut self, signal: Signal) {
        let child = self.node_mut().child.as_ref().expect("the broker runs");
        process::signal(child, signal).expect("the broker can be signalled");
    }

    fn wait_for_end(&mut self) {
        if let Some(mut child) = self.node_mut().child.take() {
            child.wait().expect("a child can be waited for");
        }
    }

    /// Ready is: our own log says that it started, and what answers at our port is our cluster.
    /// A port that is merely open proves nothing.
    fn wait_until_ready(&mut self) -> Result<(), String> {
        let dir = self.dir.clone();
        let node = self.node.as_mut().ok_or("no broker of our own")?;
        node.wait_until_started(&dir)?;
        let found = self.oracle.cluster_id()?;
        if found == node.cluster_id {
            Ok(())
        } else {
            Err(format!("{} is another cluster: {found}", self.brokers))
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let Some(node) = self.node.as_mut() else { return };
        node.end();
        leave(&self.dir);
    }
}

/// Removes the files of brokers that have ended; a test that failed leaves them to be looked at,
/// until a later test process sweeps them away.
pub(crate) fn leave(dir: &Path) {
    if std::thread::panicking() {
        crate::say(&format!("the brokers' files are in {}", dir.display()));
    } else {
        let _ = fs::remove_dir_all(dir);
    }
}

impl Node {
    /// Ends its process, if it runs.
    pub(crate) fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SIGKILL ends a stopped process too.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn launch(&mut self, dir: &Path, mut java: Command) -> Result<(), String> {
        self.starts += 1;
        let n = self.starts;
        let out = File::create(dir.join(format!("broker-{n}.out"))).map_err(|e| e.to_string())?;
        let errors = out.try_clone().map_err(|e| e.to_string())?;
        // Above the 128 MiB that it needs: after a pause it takes seconds of traffic at once.
        java.arg("-Xmx256m");
        java.arg(format!("-Dkafka.log={}", dir.join(format!("broker-{n}.log")).display()));
        java.arg("kafka.Kafka").arg(dir.join("broker.properties"));
        java.stdout(out).stderr(errors);
        self.child = Some(process::spawn(java).map_err(|e| format!("java: {e}"))?);
        Ok(())
    }

    /// Waits until the log of this start says that the broker takes requests.
    pub(crate) fn wait_until_started(&mut self, dir: &Path) -> Result<(), String> {
        let start = Instant::now();
        let log = dir.join(format!("broker-{}.log", self.starts));
        loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if text.contains("Kafka Server started") {
                return Ok(());
            }
            let ended = self.child.as_mut().is_none_or(|c| !matches!(c.try_wait(), Ok(None)));
            if ended || start.elapsed() > START_LIMIT {
                let out = fs::read_to_string(dir.join(format!("broker-{}.out", self.starts)));
                return Err(format!(
                    "not ready after {:?}, ended: {ended}\n{text}\n{}",
                    start.elapsed(),
                    out.unwrap_or_default()
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Waits until a signal has stopped the process: the last of its threads, which may be busy in
/// the kernel for a while.
pub(crate) fn wait_until_stopped(pid: u32) {
    crate::until(Duration::from_secs(60), "the broker stands still", || {
        process::is_stopped(pid).expect("the broker's state")
    });
}

/// The bytes in a topic's log on one broker's disk.
pub(crate) fn log_bytes(data: &Path, topic: &str) -> u64 {
    let prefix = format!("{topic}-");
    let data = fs::read_dir(data).expect("the broker's data");
    data.flatten()
        .filter(|d| {
            let name = d.file_name();
            let number = name.to_str().and_then(|n| n.strip_prefix(&prefix));
            number.is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
        })
        .flat_map(|d| fs::read_dir(d.path()).into_iter().flatten().flatten())
        .filter(|f| f.path().extension().is_some_and(|e| e == "log"))
        .map(|f| f.metadata().map_or(0, |m| m.len()))
        .sum()
}

/// A port at which nothing answers: connections are refused.
///
/// # Panics
/// When none is free.
#[must_use]
pub fn dead_port() -> u16 {
    free_ports(&mut Random::new(crate::seed()), 1).expect("a free port")
}

/// The first of `count` ports in a row that are free now.
pub(crate) fn free_ports(random: &mut Random, count: u16) -> Result<u16, String> {
    for _ in 0..100 {
        let first = random.within(PORTS.0, PORTS.1 - u64::from(count)) as u16;
        let bound: Vec<_> =
            (first..first + count).map(|port| TcpListener::bind(("127.0.0.1", port))).collect();
        if bound.iter().all(Result::is_ok) {
            return Ok(first);
        }
    }
    Err("no free ports between 12000 and 32000".to_owned())
}

/// 22 characters of URL-safe base64, as Kafka wants them: 16 bytes, so the last one holds 2 bits.
pub(crate) fn cluster_id(random: &mut Random) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut id: String = (0..20).map(|_| LETTERS[random.within(0, 62) as usize] as char).collect();
    id.push_str("AA");
    id
}

fn properties(
    dir: &Path,
    port: u16,
    controller: u16,
    options: &KafkaOptions,
    secure: Option<&Secure>,
) -> String {
    let auto = options.auto_create_partitions;
    let mut text = format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAIN://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAIN://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAIN
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAIN:PLAINTEXT
log.dirs={}
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=400
auto.create.topics.enable={}
num.partitions={}
log.cleaner.dedupe.buffer.size=2097152
log.index.size.max.bytes=1048576
num.network.threads=1
num.io.threads=2
background.threads=2
",
        dir.join("data").display(),
        auto.is_some(),
        auto.unwrap_or(1),
    );
    if let Some(secure) = secure {
        text.push_str(&secure.properties(port, controller));
    }
    for (name, value) in &options.properties {
        text.push_str(&format!("{name}={value}\n"));
    }
    text
}
