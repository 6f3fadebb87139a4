//! Three brokers and the end of our own process: Kafka never seen, a close or a drop in the middle of
//! an outage, SIGKILL and SIGTERM during a fault or a rebuild. The next run delivers what was promised.
#![cfg(feature = "kafka")]

mod scenes_common;

use forebay::Pipeline;
use forebay_testkit::audit::{Audit, Id};
use forebay_testkit::process::{self, signal};
use forebay_testkit::{Cluster, Consumed, Trouble, heavy, private_dir, say};
use rustix::process::Signal;
use scenes_common::{common, left_out};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const RECORDS_PER_S: u64 = 20_000;
/// What may be in flight when the process ends.
const IN_FLIGHT_MAX: u64 = 131_072;
/// A record is promised this long after it was accepted: the loss window, and twice as much again
/// for what the pipeline says of itself, which may be a second old. By the process's own clock, so
/// that no standstill of the machine counts; and when the pipeline says that it is late, by as much
/// later.
const PROMISED_MS: u64 = 3_000;
const LOSS_WINDOW_MS: u64 = 1_000;

/// The next run of a directory: delivers what it finds. Gives how much that was.
fn deliver_the_rest(brokers: &str, dir: &Path, topic: &str) -> u64 {
    let (pipeline, _topic) = common::open(brokers, dir, topic);
    common::flush(&pipeline);
    let report = pipeline.close(Duration::from_secs(60)).expect("it closes");
    common::assert_all_delivered(&report, 0, 0);
    report.stats.books.recovered
}

/// How the pipeline ends in the middle of the outage.
#[derive(Clone, Copy, Debug)]
enum End {
    Close,
    Drop,
}

fn ended_in_an_outage(end: End) {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    let topic_name = cluster.topic("ended", common::PARTITIONS, &[]);
    let dir = private_dir();
    let (pipeline, topic) = common::open(&cluster.proxied(), dir.path(), &topic_name);
    let load = common::Load::start(&topic, 2, RECORDS_PER_S, u64::MAX);
    std::thread::sleep(Duration::from_secs(1));
    cluster.trouble_everywhere(Trouble::Hang);
    let start = Instant::now();
    while pipeline.stats().books.in_wal == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", pipeline.stats());
        std::thread::sleep(Duration::from_millis(10));
    }
    let counts = common::counts(&load.stop());
    let start = Instant::now();
    match end {
        End::Close => {
            let report = pipeline.close(Duration::from_millis(500)).expect("it closes");
            let books = report.stats.books;
            assert!(report.complete && books.balanced() && books.in_wal > 0, "{report:?}");
            assert_eq!((books.set_aside, books.dropped), (0, 0), "our closing made it final");
        }
        End::Drop => drop(pipeline),
    }
    let took = start.elapsed();
    cluster.trouble_everywhere(Trouble::None);
    let recovered = deliver_the_rest(&cluster.brokers(), dir.path(), &topic_name);
    let records = cluster.oracle().read(&topic_name).expect("the topic is read");
    let audit = Audit::new(&records, common::stream);
    say(&format!(
        "scene {end:?} in an outage: took {took:.1?}, {recovered} recovered by the next run; {}",
        audit.line(&counts)
    ));
    assert!(recovered > 0, "the outage left nothing");
    assert!(audit.missing(&counts).is_empty(), "{}", audit.line(&counts));
    assert!(audit.duplicates <= IN_FLIGHT_MAX, "{}", audit.line(&counts));
}

#[test]
fn closed_in_an_outage() {
    ended_in_an_outage(End::Close);
}

#[test]
fn dropped_in_an_outage() {
    ended_in_an_outage(End::Drop);
}

#[test]
fn kafka_was_never_seen() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    let topic_name = cluster.topic("never-seen", common::PARTITIONS, &[]);
    let dir = private_dir();
    cluster.trouble_everywhere(Trouble::Refuse);
    let builder = Pipeline::builder().brokers(cluster.proxied()).wal_dir(dir.path());
    let pipeline = builder.open().expect("it opens without Kafka");
    let topic = pipeline.topic(&topic_name).expect("a good name");
    let sent = common::Load::start(&topic, 2, RECORDS_PER_S, 30_000).finish();
    let report = pipeline.close(Duration::from_secs(1)).expect("it closes");
    let books = report.stats.books;
    assert!(report.complete && books.balanced(), "{report:?}");
    assert_eq!((books.accepted, books.in_wal, books.delivered), (60_000, 60_000, 0), "{books:?}");
    assert_eq!(cluster.oracle().end_offsets(&topic_name).unwrap().iter().sum::<i64>(), 0);
    cluster.trouble_everywhere(Trouble::None);
    let recovered = deliver_the_rest(&cluster.proxied(), dir.path(), &topic_name);
    assert_eq!(recovered, 60_000);
    let records = cluster.oracle().read(&topic_name).expect("the topic is read");
    let audit = Audit::new(&records, common::stream);
    let counts = common::counts(&sent);
    say(&format!("scene Kafka never seen: {}", audit.line(&counts)));
    audit.assert_exact(&counts);
    records.iter().for_each(common::assert_as_sent);
}

/// The process that is killed: sends until its end, and says all the time how much was taken, and
/// whether its producer is being replaced, which it begins when it is told to.
#[test]
#[ignore = "run by the tests below, which kill it"]
fn sends_until_it_is_killed() {
    let of = |name: &str| std::env::var(name).expect("set by the test");
    let (brokers, dir, topic) = (of("SCENE_BROKERS"), of("SCENE_DIR"), of("SCENE_TOPIC"));
    let reload = of("SCENE_RELOAD");
    let (pipeline, topic) = common::open(&brokers, Path::new(&dir), &topic);
    let taken = Arc::new([const { std::sync::atomic::AtomicU64::new(0) }; 2]);
    for source in 0..2u32 {
        let (topic, taken) = (topic.clone(), taken.clone());
        std::thread::spawn(move || {
            let (mut number, start) = (0, Instant::now());
            loop {
                let due = start.elapsed().as_micros() as u64 * RECORDS_PER_S / 2_000_000;
                if number < due && common::send(&topic, Id { source, number }) {
                    number += 1;
                    taken[source as usize].store(number, std::sync::atomic::Ordering::Release);
                } else {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
    }
    let mut is_told = false;
    let start = Instant::now();
    loop {
        if !is_told && Path::new(&reload).exists() {
            is_told = true;
            pipeline.reload(&[("client.id", "second")]).expect("good properties");
        }
        let of = |source: usize| taken[source].load(std::sync::atomic::Ordering::Acquire);
        // Before the figures: what is said of this moment is no younger.
        let (at_ms, taken) = (start.elapsed().as_millis(), [of(0), of(1)]);
        let stats = pipeline.stats();
        let rebuilds = u64::from(stats.states.rebuilding);
        let unsafe_ms = stats.oldest_unsafe_ms;
        let line = format!("taken {} {} {rebuilds} {at_ms} {unsafe_ms}\n", taken[0], taken[1]);
        if std::io::stdout().write_all(line.as_bytes()).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the process says of itself.
#[derive(Clone, Copy)]
struct Said {
    /// By its own clock.
    at_ms: u64,
    /// How much of each source was taken.
    taken: [u64; 2],
    rebuilding: bool,
    /// How old the oldest record was that was neither delivered nor in the log.
    unsafe_ms: u64,
}

/// The killed process as its parent sees it: what it said when.
struct Doomed {
    child: Child,
    said: Arc<Mutex<Vec<Said>>>,
    words: tempfile::TempDir,
}

impl Doomed {
    fn start(brokers: &str, dir: &Path, topic: &str) -> Doomed {
        let words = private_dir();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["sends_until_it_is_killed", "--exact", "--include-ignored", "--nocapture"]);
        command.env("SCENE_BROKERS", brokers).env("SCENE_TOPIC", topic);
        command.env("SCENE_RELOAD", words.path().join("reload"));
        command.env("SCENE_DIR", dir).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = process::spawn(command).expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let said = Arc::new(Mutex::new(Vec::new()));
        let own = said.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut words = line.split(' ').skip_while(|w| *w != "taken").skip(1);
                let mut number = || words.next()?.parse::<u64>().ok();
                let mut numbers = || Some([number()?, number()?, number()?, number()?, number()?]);
                if let Some([a, b, rebuilds, at_ms, unsafe_ms]) = numbers() {
                    let (taken, rebuilding) = ([a, b], rebuilds > 0);
                    own.lock().unwrap().push(Said { at_ms, taken, rebuilding, unsafe_ms });
                }
            }
        });
        let doomed = Doomed { child, said, words };
        doomed.wait_until(|said| said.taken[0] > 10_000);
        doomed
    }

    /// Tells it to replace its producer, and waits until it does.
    fn rebuild(&self) {
        std::fs::write(self.words.path().join("reload"), "").expect("it is told");
        self.wait_until(|said| said.rebuilding);
    }

    fn wait_until(&self, what: impl Fn(&Said) -> bool) {
        let start = Instant::now();
        while !self.said.lock().unwrap().last().is_some_and(&what) {
            assert!(start.elapsed() < Duration::from_secs(120), "the sender doesn't do it");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it; gives what is promised, and the last that it said.
    fn end(mut self, by: Signal) -> ([u64; 2], Said) {
        signal(&self.child, by).expect("it runs");
        self.child.wait().expect("it ends");
        let said = self.said.lock().unwrap();
        let last = *said.last().expect("it said something");
        let promised_ms = PROMISED_MS + last.unsafe_ms.saturating_sub(LOSS_WINDOW_MS);
        let old = said.iter().rev().find(|said| said.at_ms + promised_ms <= last.at_ms);
        (old.map_or([0, 0], |said| said.taken), last)
    }
}

/// What the process meets when it is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum During {
    Nothing,
    LeaderKill,
    RollingRestart,
    Freeze,
    /// The producer is replaced while no answer comes: what is in flight was appended.
    Rebuild,
    /// The same while no request comes through: they are appended after the process has died.
    RebuildInAHang,
    /// The same while a leader stands still, with requests in its sockets.
    RebuildInAFreeze,
}

impl During {
    /// Whether what the dead process sent may be appended later.
    fn has_survivors(self) -> bool {
        matches!(self, During::Freeze | During::RebuildInAHang | During::RebuildInAFreeze)
    }

    fn rebuilds(self) -> bool {
        matches!(self, During::Rebuild | During::RebuildInAHang | During::RebuildInAFreeze)
    }

    fn is_proxied(self) -> bool {
        matches!(self, During::Rebuild | During::RebuildInAHang)
    }
}

fn killed(during: During, by: Signal) {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    let topic = cluster.topic("doomed", common::PARTITIONS, &[]);
    let dir = private_dir();
    let brokers = if during.is_proxied() { cluster.proxied() } else { cluster.brokers() };
    let doomed = Doomed::start(&brokers, dir.path(), &topic);
    let id = cluster.leader(&topic, 0).expect("a leader");
    std::thread::sleep(Duration::from_secs(3));
    match during {
        During::Nothing => {}
        During::LeaderKill => cluster.kill(id),
        During::RollingRestart => cluster.stop(id),
        During::Freeze | During::RebuildInAFreeze => cluster.pause(id),
        During::Rebuild => cluster.trouble_everywhere(Trouble::SwallowAnswers),
        During::RebuildInAHang => cluster.trouble_everywhere(Trouble::Hang),
    }
    if during.rebuilds() {
        // What is in flight by then holds the old producer back for seconds.
        std::thread::sleep(Duration::from_millis(500));
        doomed.rebuild();
        std::thread::sleep(Duration::from_millis(1_000));
    } else {
        std::thread::sleep(Duration::from_millis(1_500));
    }
    let (promised, last) = doomed.end(by);
    match during {
        During::Nothing => {}
        During::LeaderKill | During::RollingRestart => drop(cluster.restart(&[id])),
        // What lies in its sockets it appends now: late survivors.
        During::Freeze | During::RebuildInAFreeze => cluster.resume(id),
        During::Rebuild | During::RebuildInAHang => cluster.trouble_everywhere(Trouble::None),
    }
    cluster.wait_until_in_sync(&topic);
    let recovered = deliver_the_rest(&cluster.brokers(), dir.path(), &topic);
    let records = cluster.oracle().read(&topic).expect("the topic is read");
    let audit = Audit::new(&records, common::stream);
    say(&format!(
        "scene process ended by {by:?} during {during:?}: promised {promised:?}, recovered \
         {recovered}, {}, holes {}, a rebuild under way at its end: {}",
        audit.line(&promised),
        holes(&records, &audit),
        last.rebuilding
    ));
    assert_eq!(last.rebuilding, during.rebuilds(), "the fault took no place");
    assert!(promised.iter().all(|n| *n > 0), "{promised:?}");
    assert!(audit.missing(&promised).is_empty(), "{}", audit.line(&promised));
    assert_eq!(holes(&records, &audit), 0, "{}", audit.line(&promised));
    assert!(audit.duplicates <= IN_FLIGHT_MAX, "{}", audit.line(&promised));
    assert_eq!((audit.strangers, audit.split_keys), (0, 0));
    // Late survivors are younger than what is promised.
    let is_old = |late: Id| late.number < promised[late.source as usize];
    let judged = audit.disorder.iter().filter(|d| !during.has_survivors() || is_old(d.late));
    assert_eq!(judged.count(), 0, "{}", audit.line(&promised));
    records.iter().for_each(common::assert_as_sent);
}

/// Records of a key that didn't arrive though a later one of the same thread and key did.
fn holes(records: &[Consumed], audit: &Audit) -> usize {
    let mut last: HashMap<(u32, String), u64> = HashMap::new();
    let ids = || records.iter().filter_map(Id::of);
    for id in ids().filter(|id| common::kind(*id) == common::Kind::Keyed) {
        let newest = last.entry((id.source, common::key(id))).or_default();
        *newest = id.number.max(*newest);
    }
    let most = |source| ids().filter(|id| id.source == source).map(|id| id.number).max();
    let all = (0..2)
        .flat_map(|source| (0..most(source).unwrap_or(0)).map(move |number| Id { source, number }));
    all.filter(|id| common::kind(*id) == common::Kind::Keyed && !audit.has(*id))
        .filter(|id| last.get(&(id.source, common::key(*id))).is_some_and(|n| *n > id.number))
        .count()
}

#[test]
fn killed_while_all_is_well() {
    if !left_out("process killed, all well") {
        killed(During::Nothing, Signal::KILL);
    }
}

#[test]
fn killed_during_a_leader_kill() {
    killed(During::LeaderKill, Signal::KILL);
}

#[test]
fn killed_during_a_rolling_restart() {
    if !left_out("process killed in a rolling restart") {
        killed(During::RollingRestart, Signal::KILL);
    }
}

#[test]
fn killed_while_a_leader_stands_still() {
    killed(During::Freeze, Signal::KILL);
}

#[test]
fn killed_during_a_rebuild() {
    killed(During::Rebuild, Signal::KILL);
}

#[test]
fn killed_during_a_rebuild_while_nothing_gets_through() {
    killed(During::RebuildInAHang, Signal::KILL);
}

#[test]
fn killed_during_a_rebuild_while_a_leader_stands_still() {
    if !left_out("process killed in a rebuild beside a frozen leader") {
        killed(During::RebuildInAFreeze, Signal::KILL);
    }
}

/// Nobody catches the signal here: the process ends as it does with SIGKILL.
#[test]
fn terminated_during_a_leader_kill() {
    if !left_out("process terminated") {
        killed(During::LeaderKill, Signal::TERM);
    }
}
