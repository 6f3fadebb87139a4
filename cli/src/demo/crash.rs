//! Owns `forebay demo --crash`: the sending process is killed in the middle of the outage and
//! started again on its directory.
//!
//! This process has the brokers and the consumer; the one that is killed is this program again,
//! with a hidden option. It tells on its standard output, every few milliseconds, how many
//! records each of its threads had got accepted at what time of the clock that both share; so
//! it is known what a crash may cost, and what it cost. What the brokers do it hears on its
//! standard input; that input's end is its own end.

use super::conductor::{Mark, Timeline};
use super::oracle::{Oracle, Tally};
use super::report::{Outcome, Verdict, count, print_object, print_text};
use super::scene::Scene;
use super::senders::{Phase, SOURCES_PER_GENERATION, Senders};
use super::{Args, Child};
use forebay::Stats;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::error::Error;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the child tells.
const TELL: Duration = Duration::from_millis(5);
const TICK: Duration = Duration::from_millis(2);
/// The library's default loss window.
const LOSS_WINDOW_MS: u64 = 1000;
/// Longest that the second process may take beyond what it sends.
const PATIENCE: Duration = Duration::from_secs(60);

/// The clock that all processes share.
fn shared_clock_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Runs the process that may be killed.
pub fn child(args: &Args, child: Child) -> Result<ExitCode, Box<dyn Error>> {
    let (Some(brokers), Some(topic), Some(dir)) = (&args.brokers, &args.topic, &args.wal_dir)
    else {
        return Err("--crash-child needs --brokers, --topic and --wal-dir".into());
    };
    let pipeline = args.builder(brokers).wal_dir(dir).open()?;
    let topic = pipeline.topic(topic)?;
    if child.generation == 0 {
        pipeline.ready(Duration::from_secs(30))?;
    }
    println(format_args!("open {}", pipeline.stats().books.recovered))?;
    let senders = Senders::start(args, &pipeline, &topic, child.run, child.generation)?;
    let shared = senders.shared();
    let hear = shared.clone();
    std::thread::Builder::new().name("hear".into()).spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            hear.set_phase(if line == "outage" { Phase::Outage } else { Phase::Healthy });
        }
        std::process::exit(1);
    })?;
    let tell = |stats: &Stats| {
        let mut line = String::from("at");
        let b = &stats.books;
        let accepted: Vec<u64> = shared.accepted().collect();
        let at = shared_clock_ns();
        let cpu = Mark::now().cpu.as_nanos();
        let (looks, unsafe_ms) = (stats.looks, stats.oldest_unsafe_ms);
        let _ = write!(line, " {at} {cpu} {} {} {looks} {unsafe_ms}", b.delivered, b.in_wal);
        for n in accepted {
            let _ = write!(line, " {n}");
        }
        println(format_args!("{line}"))
    };
    while shared.begin.elapsed() < args.seconds {
        tell(&pipeline.stats())?;
        std::thread::sleep(TELL);
    }
    let sent = senders.join();
    let _ = pipeline.flush(Duration::ZERO);
    let until = Instant::now() + PATIENCE;
    loop {
        let stats = pipeline.stats();
        tell(&stats)?;
        let left = stats.books.in_lanes + stats.books.in_flight + stats.books.in_wal;
        if left == 0 || Instant::now() > until {
            break;
        }
        std::thread::sleep(TELL);
    }
    let elapsed = shared.begin.elapsed();
    let closed = pipeline.close(Duration::from_secs(5))?;
    let outcome = Outcome {
        books: closed.stats.books,
        refused: Vec::new(),
        timeline: Timeline::default(),
        drilled: None,
        elapsed,
        sent,
        arrived: Tally::default(),
        verdict: Verdict::default(),
    };
    println(format_args!("end {}", serde_json::to_string(&outcome.json())?))?;
    Ok(ExitCode::SUCCESS)
}

fn println(line: std::fmt::Arguments<'_>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// What the child said at one time.
#[derive(Clone, Debug, Default)]
struct Told {
    at_ns: u64,
    cpu_ns: u64,
    delivered: u64,
    in_wal: u64,
    /// The flusher's looks so far.
    looks: u64,
    /// How old, at the last one, the oldest record was that was neither delivered nor in the log.
    unsafe_ms: u64,
    /// By source; got by the time above, of the figures above or newer.
    accepted: Vec<u64>,
}

impl Told {
    fn parse(words: &str) -> Option<Told> {
        let mut numbers = words.split(' ').map(|n| n.parse::<u64>().ok());
        let mut next = || numbers.next().flatten();
        let (at_ns, cpu_ns, delivered, in_wal) = (next()?, next()?, next()?, next()?);
        let (looks, unsafe_ms) = (next()?, next()?);
        let accepted = numbers.collect::<Option<Vec<u64>>>()?;
        Some(Told { at_ns, cpu_ns, delivered, in_wal, looks, unsafe_ms, accepted })
    }

    /// When at the latest the look began of which the last of `told` has the figures.
    ///
    /// It began after the figures of the look before it were there; so after whoever was told of
    /// still older ones had got them, and after all that was told earlier.
    fn look_began_ns(told: &[Told]) -> Option<u64> {
        let last = told.last()?.looks;
        let before = told.iter().map(|t| t.looks).rfind(|looks| *looks < last)?;
        let older = told.iter().rposition(|t| t.looks < before)?;
        Some(told[older.checked_sub(1)?].at_ns)
    }
}

/// All that a child said.
#[derive(Default)]
struct Log {
    recovered: Option<u64>,
    told: Vec<Told>,
    end: Option<Value>,
    is_over: bool,
}

/// A child, and what it says.
struct Sender {
    process: std::process::Child,
    stdin: Option<ChildStdin>,
    log: Arc<Mutex<Log>>,
    listener: Option<JoinHandle<()>>,
}

impl Sender {
    fn start(
        args: &Args,
        scene: &Scene,
        generation: u32,
        seconds: Duration,
    ) -> Result<Sender, Box<dyn Error>> {
        let dir = scene.wal_dir().ok_or("a crash needs a log")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("demo").args(["--brokers", scene.brokers(), "--topic", scene.topic()]);
        command.arg("--wal-dir").arg(dir);
        command.arg("--crash-child").arg(format!("{}:{generation}", scene.run()));
        command.arg("--seconds").arg(seconds.as_secs_f64().to_string());
        command.arg("--threads").arg(args.load.threads.to_string());
        command.arg("--rate").arg(args.load.rate.to_string());
        command.arg("--payload").arg(args.load.payload.to_string());
        if let Some(ms) = args.loss_window_ms {
            command.arg("--loss-window-ms").arg(ms.to_string());
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = process.stdin.take();
        let log = Arc::new(Mutex::new(Log::default()));
        let heard = log.clone();
        let stdout = process.stdout.take().ok_or("no pipe to the child")?;
        let listener = std::thread::Builder::new().name("listen".into()).spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut log = lock(&heard);
                match line.split_once(' ') {
                    Some(("at", words)) => log.told.extend(Told::parse(words)),
                    Some(("open", n)) => log.recovered = n.parse().ok(),
                    Some(("end", object)) => log.end = serde_json::from_str(object).ok(),
                    _ => {}
                }
            }
            lock(&heard).is_over = true;
        })?;
        Ok(Sender { process, stdin, log, listener: Some(listener) })
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }

    fn newest(&self) -> Told {
        self.log().told.last().cloned().unwrap_or_default()
    }

    fn say(&mut self, word: &str) {
        if let Some(stdin) = &mut self.stdin {
            // A child that has ended hears nothing; that it ended is seen elsewhere.
            let _ = writeln!(stdin, "{word}").and_then(|()| stdin.flush());
        }
    }

    fn is_over(&self) -> bool {
        self.log().is_over
    }

    /// SIGKILL; everything that it had said is in the log when this returns.
    fn kill(&mut self) -> std::io::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        Ok(())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    // The listener can't leave a log half changed.
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a crash cost.
#[derive(Debug)]
struct Cost {
    accepted: u64,
    lost: u64,
    lost_outside_window: u64,
    oldest_lost_ms: u64,
}

impl Cost {
    /// Judges the first process's records, of which it said `told` and which was killed at
    /// `killed_ns`. The window is counted back from its last look that is known to have ended: a
    /// machine that stood still before the kill is no loss of the pipeline's. And when it said by
    /// itself that records were older than the window, from so much earlier.
    fn new(told: &[Told], killed_ns: u64, window_ms: u64, arrived: &Oracle) -> Cost {
        let unsafe_ms = told.last().map_or(0, |t| t.unsafe_ms + 1);
        let window_ns = window_ms.max(unsafe_ms).saturating_mul(1_000_000);
        let safe_ns = Told::look_began_ns(told).unwrap_or(0).saturating_sub(window_ns);
        let nothing = Told::default();
        let safe = told.iter().rfind(|t| t.at_ns <= safe_ns).unwrap_or(&nothing);
        let last = told.last().unwrap_or(&nothing);
        let mut cost = Cost { accepted: 0, lost: 0, lost_outside_window: 0, oldest_lost_ms: 0 };
        for (source, said) in (0u32..).zip(&last.accepted) {
            // What it had no time to tell of may have arrived all the same.
            let accepted = arrived.reached(source).max(*said);
            let safe = safe.accepted.get(source as usize).copied().unwrap_or(0);
            cost.accepted += accepted;
            for number in arrived.missing(source, accepted) {
                cost.lost += 1;
                cost.lost_outside_window += u64::from(number < safe);
                // Accepted at the latest when it was first told of.
                let told_at = told.partition_point(|t| {
                    t.accepted.get(source as usize).is_none_or(|n| *n <= number)
                });
                let at_ns = told.get(told_at).map_or(killed_ns, |t| t.at_ns);
                let age_ms = killed_ns.saturating_sub(at_ns) / 1_000_000;
                cost.oldest_lost_ms = cost.oldest_lost_ms.max(age_ms);
            }
        }
        cost
    }
}

/// Cores in use between two things told.
fn cores(from: &Told, to: &Told) -> f64 {
    let wall = to.at_ns.saturating_sub(from.at_ns) as f64;
    let cpu = to.cpu_ns.saturating_sub(from.cpu_ns) as f64;
    if wall > 0.0 { (cpu / wall * 1000.0).round() / 1000.0 } else { 0.0 }
}

/// Runs the demo with a crash in it.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let Some((after, lasts)) = args.outage_plan() else {
        return Err("a crash needs an outage".into());
    };
    let scene = Scene::new(args)?;
    let reader = scene.start_reader()?;
    let note = |text: std::fmt::Arguments<'_>| {
        if !args.json {
            crate::report::say(text);
        }
    };

    let mut first = Sender::start(args, &scene, 0, Duration::from_secs(86_400))?;
    let limit = Instant::now() + Duration::from_secs(60);
    while first.log().recovered.is_none() {
        if first.is_over() || Instant::now() > limit {
            return Err("the sending process did not start".into());
        }
        std::thread::sleep(TICK);
    }
    let begin = Instant::now();
    note(format_args!("process {} sends", first.process.id()));
    super::sleep_until(begin + after.min(Duration::from_millis(500)));
    let warm = first.newest();
    super::sleep_until(begin + after);
    scene.begin_outage(args.outage)?;
    first.say("outage");
    let (gone, before) = (Instant::now(), first.newest());
    note(format_args!("the brokers are away"));
    super::sleep_until(begin + after + lasts / 2);
    if first.is_over() {
        return Err("the sending process ended by itself".into());
    }
    let killed_ns = shared_clock_ns();
    first.kill()?;
    note(format_args!("process {} was killed with SIGKILL", first.process.id()));

    let left = args.seconds.saturating_sub(begin.elapsed()).max(Duration::from_secs(1));
    let mut second = Sender::start(args, &scene, 1, left)?;
    second.say("outage");
    note(format_args!("process {} goes on with its directory", second.process.id()));
    super::sleep_until(begin + after + lasts);
    scene.end_outage(args.outage)?;
    let (back, outage) = (Instant::now(), gone.elapsed());
    second.say("back");
    note(format_args!("the brokers are back"));
    let recovered = second.log().recovered.unwrap_or(0);
    let due = recovered + second.newest().accepted.iter().sum::<u64>();
    let limit = Instant::now() + left + PATIENCE;
    let mut drained = None;
    while !second.is_over() && Instant::now() < limit {
        if drained.is_none() && second.newest().delivered >= due {
            drained = Some(back.elapsed());
        }
        std::thread::sleep(TICK);
    }
    let elapsed = begin.elapsed();
    let end = second.log().end.take().ok_or("the second process did not end well")?;

    let first_log = first.log();
    let second_accepted = second.newest().accepted;
    let at_least =
        second_accepted.iter().sum::<u64>() + first_log.told.last().map_or(0, |t| t.delivered);
    let arrived = reader.finish(at_least, Duration::from_secs(10));
    let window_ms = args.loss_window_ms.unwrap_or(LOSS_WINDOW_MS);
    let cost = Cost::new(&first_log.told, killed_ns, window_ms, &arrived);
    let last = first_log.told.last().cloned().unwrap_or_default();
    drop(first_log);
    let missing_after: u64 = (SOURCES_PER_GENERATION..)
        .zip(&second_accepted)
        .map(|(source, n)| arrived.missing(source, *n).count() as u64)
        .sum();
    let tally = arrived.tally();
    let ended = Ended {
        window_ms,
        lost: (cost.lost + missing_after).saturating_sub(tally.trimmed),
        lost_outside_window: (cost.lost_outside_window + missing_after)
            .saturating_sub(tally.trimmed),
        cost,
        tally,
        outage,
        drained,
        in_wal_at_kill: last.in_wal,
        delivered_at_kill: last.delivered,
        cpu_healthy: cores(&warm, &before),
        cpu_outage: cores(&before, &last),
        per_second: (tally.distinct as f64 / elapsed.as_secs_f64()).round(),
        end,
    };
    let good = ended.is_good();
    if args.json {
        print_object(&ended.json())?
    } else {
        print_text(&ended.text())?
    }
    scene.clean(good);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything that was found.
struct Ended {
    cost: Cost,
    lost: u64,
    lost_outside_window: u64,
    window_ms: u64,
    tally: Tally,
    outage: Duration,
    drained: Option<Duration>,
    in_wal_at_kill: u64,
    delivered_at_kill: u64,
    cpu_healthy: f64,
    cpu_outage: f64,
    per_second: f64,
    /// The second process's books.
    end: Value,
}

impl Ended {
    fn of(&self, name: &str) -> u64 {
        self.end[name].as_u64().unwrap_or(0)
    }

    fn is_good(&self) -> bool {
        let undelivered: u64 = ["in_wal", "in_lanes", "in_flight", "set_aside", "dropped"]
            .iter()
            .map(|name| self.of(name))
            .sum();
        self.lost_outside_window == 0
            && self.tally.order_violations == 0
            && self.tally.strangers == 0
            && undelivered == 0
            && self.end["balanced"] == true
    }

    /// The second process's object, with what only this process knows, and the crash.
    fn json(&self) -> Value {
        let mut object = self.end.clone();
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let known = json!({
            "consumed_distinct": self.tally.distinct,
            "trimmed_by_mock": self.tally.trimmed,
            "lost": self.lost,
            "duplicates": self.tally.duplicates,
            "order_violations": self.tally.order_violations,
            "outage_ms": ms(self.outage),
            "drained_ms": self.drained.map_or(0, ms),
            "records_per_second": self.per_second,
            "cpu_healthy": self.cpu_healthy,
            "cpu_outage": self.cpu_outage,
            "crash": {
                "accepted": self.cost.accepted,
                "delivered": self.delivered_at_kill,
                "in_wal": self.in_wal_at_kill,
                "lost": self.cost.lost,
                "lost_outside_window": self.lost_outside_window,
                "oldest_lost_ms": self.cost.oldest_lost_ms,
                "loss_window_ms": self.window_ms,
            },
        });
        if let (Some(object), Value::Object(known)) = (object.as_object_mut(), known) {
            object.extend(known);
        }
        object
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, n: u64, note: &str| {
            let line = format!("  {name:<26}{:>12}  {note}", count(n));
            let _ = writeln!(text, "{}", line.trim_end());
        };
        row("accepted before the kill", self.cost.accepted, "");
        row("  delivered by then", self.delivered_at_kill, "as far as it was told");
        row("  in the log then", self.in_wal_at_kill, "");
        let age = match self.cost.lost {
            0 => String::new(),
            _ => format!("the oldest was accepted {} ms before the kill", self.cost.oldest_lost_ms),
        };
        row("  lost", self.cost.lost, &age);
        row(
            "  lost beyond the window",
            self.lost_outside_window,
            &format!("of {} ms", self.window_ms),
        );
        row("found in the log", self.of("recovered"), "by the second process");
        row("accepted by the second", self.of("accepted"), "");
        row("delivered by the second", self.of("delivered"), "");
        row("read back, distinct", self.tally.distinct, "by a consumer that knows no books");
        row("came twice", self.tally.duplicates, "Kafka had them; the killed process never heard");
        row("out of order", self.tally.order_violations, "within a thread and key");
        if self.tally.trimmed > 0 {
            row("trimmed by the mock", self.tally.trimmed, "delivered, then dropped unread");
        }
        let verdict = match self.is_good() {
            true => "lost nothing beyond the window, the order held, the books balance",
            false => "NOT GOOD: see the rows above, and the second process's books below",
        };
        let _ = writeln!(text, "\n  {verdict}");
        if !self.is_good() {
            let _ = writeln!(text, "  {}", self.end);
        }
        text
    }
}
