//! Errors by scope against a real Kafka: what one record, one request or one topic gets wrong
//! costs that record, that request or that topic a delay at most, and nobody else.
#![cfg(feature = "kafka")]

mod kafka_common;

use forebay::{CloseReport, Pipeline, Topic};
use forebay_testkit::audit::{Audit, Id, Stream};
use forebay_testkit::{Consumed, Kafka, private_dir, say};
use kafka_common as common;
use std::time::{Duration, Instant};

/// The limit of the topics here that have one.
const LIMIT: [(&str, &str); 1] = [("max.message.bytes", "20000")];

fn close(pipeline: Pipeline) -> CloseReport {
    let report = pipeline.close(Duration::from_secs(90)).expect("it closes");
    assert!(report.complete && report.stats.books.balanced(), "{report:?}");
    report
}

/// A keyed record of about `bytes` bytes with the id in front.
fn send(topic: &Topic, id: Id, bytes: usize) {
    let mut value = id.text().into_bytes();
    value.resize(bytes.max(value.len()), b'x');
    let key = format!("k{}", id.number % 10);
    let start = Instant::now();
    while topic.record(&value).key(key.as_bytes()).send().is_err() {
        assert!(start.elapsed() < Duration::from_secs(120), "no room for {id:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn id(number: u64) -> Id {
    Id { source: 0, number }
}

/// Facts of this broker, by a client of librdkafka's own: a request of 300 records of 1 KB is
/// refused as a whole by a topic with a limit of 20,000 bytes. Ours are all delivered.
#[test]
fn a_request_too_large_as_a_whole_costs_no_record() {
    let Some(kafka) = Kafka::shared() else { return };
    let name = kafka.topic_with("batch", 1, &LIMIT);
    let dir = private_dir();
    let (pipeline, topic) = common::open(kafka.brokers(), dir.path(), &name);
    for number in 0..300 {
        send(&topic, id(number), 1_000);
    }
    common::flush(&pipeline);
    let books = close(pipeline).stats.books;
    assert_eq!((books.delivered, books.set_aside, books.dropped), (300, 0, 0), "{books:?}");
    assert!(books.reordered > 0, "no request was refused, so nothing was tested: {books:?}");
    let records = kafka.oracle().read(&name).unwrap();
    let audit = Audit::new(&records, in_key);
    assert!(audit.missing(&[300]).is_empty() && audit.duplicates == 0, "{}", audit.line(&[300]));
    say(&format!(
        "a request too large as a whole: {}, sent again {}",
        audit.line(&[300]),
        books.reordered
    ));
}

#[test]
fn a_record_too_large_for_its_topic_is_set_aside_alone() {
    let Some(kafka) = Kafka::shared() else { return };
    let name = kafka.topic_with("small", 1, &LIMIT);
    let dir = private_dir();
    let (pipeline, topic) = common::open(kafka.brokers(), dir.path(), &name);
    for number in 0..301 {
        send(&topic, id(number), if number == 100 { 50_000 } else { 100 });
    }
    common::flush(&pipeline);
    for number in 301..401 {
        send(&topic, id(number), 100);
    }
    common::flush(&pipeline);
    let report = close(pipeline);
    let books = report.stats.books;
    assert_eq!((books.delivered, books.set_aside, books.dropped), (400, 1, 0), "{books:?}");
    let aside: Vec<_> = report.stats.topics.iter().flat_map(|t| &t.set_aside).collect();
    assert_eq!(aside, [&("message_too_large", 1)]);
    let audit = Audit::new(&kafka.oracle().read(&name).unwrap(), in_key).missing(&[401]);
    assert_eq!(audit, [id(100)]);
    say(&format!("one too large among 401: 1 set aside, sent again {}", books.reordered));
}

/// One record of a hundred is too large for its topic: exactly those are set aside, and the
/// topic beside it goes on.
#[test]
fn one_percent_of_poison_costs_itself_and_no_other_topic() {
    const RECORDS: u64 = 4_000;
    let Some(kafka) = Kafka::shared() else { return };
    let (poisoned, good) = (kafka.topic_with("poison", 2, &LIMIT), kafka.topic("beside", 2));
    let mut rates = Vec::new();
    for with_poison in [false, true] {
        let dir = private_dir();
        let (pipeline, bad) = common::open(kafka.brokers(), dir.path(), &poisoned);
        let beside = pipeline.topic(&good).expect("a good name");
        pipeline.ready(Duration::from_secs(90)).expect("the broker is there");
        let source = u32::from(with_poison);
        let start = Instant::now();
        for number in 0..RECORDS {
            let poison = with_poison && number % 100 == 50;
            send(&bad, Id { source, number }, if poison { 30_000 } else { 100 });
            send(&beside, Id { source, number }, 100);
        }
        let delivered = |topic: &str| {
            let topics = pipeline.stats().topics;
            topics.iter().find(|t| t.name == topic).map_or(0, |t| t.delivered)
        };
        while delivered(&good) < RECORDS {
            assert!(start.elapsed() < Duration::from_secs(120), "{:?}", pipeline.stats());
            std::thread::sleep(Duration::from_millis(1));
        }
        rates.push((RECORDS as f64 / start.elapsed().as_secs_f64()) as u64);
        common::flush(&pipeline);
        let whole = start.elapsed();
        let report = close(pipeline);
        let books = report.stats.books;
        let guilty = if with_poison { RECORDS / 100 } else { 0 };
        assert_eq!((books.set_aside, books.dropped), (guilty, 0), "{books:?}");
        assert_eq!(books.delivered, 2 * RECORDS - guilty, "{books:?}");
        say(&format!(
            "poison {guilty} of {RECORDS}: set aside {}, sent again {}, all done after {whole:.1?}",
            books.set_aside, books.reordered
        ));
    }
    let records = kafka.oracle().read(&poisoned).unwrap();
    let missing = Audit::new(&records, in_key).missing(&[RECORDS, RECORDS]);
    let is_poison = |id: &Id| id.source == 1 && id.number % 100 == 50;
    assert!(missing.len() as u64 == RECORDS / 100 && missing.iter().all(is_poison));
    let audit = Audit::new(&kafka.oracle().read(&good).unwrap(), in_key);
    assert_eq!(audit.distinct, 2 * RECORDS);
    say(&format!("the topic beside: {}/s without poison, {}/s with it", rates[0], rates[1]));
}

/// Waits until `topic` is held with `records` records, or until nothing is held.
fn wait_for_hold(pipeline: &Pipeline, topic: Option<(&str, u64)>) -> Duration {
    let start = Instant::now();
    loop {
        let held = pipeline.stats().held;
        let is_there = match topic {
            Some((name, n)) => held.iter().any(|h| h.topic == name && h.records == n),
            None => held.is_empty(),
        };
        if is_there {
            return start.elapsed();
        }
        assert!(start.elapsed() < Duration::from_secs(120), "{topic:?}: {:?}", pipeline.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Nobody made the topic: its records are held, the topic beside it goes on from the first moment,
/// a second run holds on, and when the topic is made everything arrives, once and in order.
#[test]
fn an_unknown_topic_is_held_over_a_restart_and_redriven_when_it_is_made() {
    const RECORDS: u64 = 2_000;
    let Some(kafka) = Kafka::shared() else { return };
    let known_name = kafka.topic("known", 1);
    let unknown_name = format!("{known_name}-made-later");
    let dir = private_dir();
    let builder = || Pipeline::builder().brokers(kafka.brokers()).wal_dir(dir.path());

    let (pipeline, known) = common::open(kafka.brokers(), dir.path(), &known_name);
    let unknown = pipeline.topic(&unknown_name).unwrap();
    let start = Instant::now();
    for number in 0..RECORDS {
        send(&unknown, id(number), 100);
        send(&known, id(number), 100);
    }
    while pipeline.stats().books.delivered < RECORDS {
        assert!(start.elapsed() < Duration::from_secs(120), "{:?}", pipeline.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    let beside = start.elapsed();
    wait_for_hold(&pipeline, Some((&unknown_name, RECORDS)));
    let stats = pipeline.stats();
    assert_eq!((stats.held[0].reason, stats.held[0].redriving), ("topic_unavailable", false));
    assert_eq!(stats.books.set_aside, RECORDS, "{:?}", stats.books);
    let books = close(pipeline).stats.books;
    assert_eq!((books.delivered, books.set_aside, books.dropped), (RECORDS, RECORDS, 0));

    // The next run holds it from its start, and takes more.
    let pipeline = builder().open().unwrap();
    let unknown = pipeline.topic(&unknown_name).unwrap();
    for number in RECORDS..2 * RECORDS {
        send(&unknown, id(number), 100);
    }
    wait_for_hold(&pipeline, Some((&unknown_name, 2 * RECORDS)));
    assert_eq!(pipeline.stats().books.recovered, RECORDS, "{:?}", pipeline.stats());
    kafka.oracle().create_topic(&unknown_name, 3, &[]).unwrap();
    let mut sent = 2 * RECORDS;
    let start = Instant::now();
    // New ones come behind what was held, all the while.
    while !pipeline.stats().held.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(120), "{:?}", pipeline.stats());
        send(&unknown, id(sent), 100);
        sent += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    let redriven = start.elapsed();
    for _ in 0..100 {
        send(&unknown, id(sent), 100);
        sent += 1;
    }
    common::flush(&pipeline);
    let books = close(pipeline).stats.books;
    assert_eq!((books.delivered, books.set_aside, books.dropped), (sent, 0, 0), "{books:?}");
    let audit = Audit::new(&kafka.oracle().read(&unknown_name).unwrap(), in_key);
    audit.assert_exact(&[sent]);
    let aside = std::fs::read_dir(dir.path().join("set-aside")).map_or(0, Iterator::count);
    say(&format!(
        "unknown topic: the one beside it delivered {RECORDS} in {beside:.1?}; made in the second \
         run, flowing again after {redriven:.1?}: {}; set-aside files left: {aside}",
        audit.line(&[sent])
    ));
}

/// Partition 3 of a topic that has two: its records are held by themselves, over a restart too,
/// nobody waits behind them, and they arrive in order when the topic has grown.
#[test]
fn a_partition_that_does_not_exist_is_held_until_the_topic_has_grown() {
    const RECORDS: u64 = 1_000;
    let Some(kafka) = Kafka::shared() else { return };
    let name = kafka.topic("grows", 2);
    let dir = private_dir();
    let send = |topic: &Topic, number: u64| {
        let text = id(number).text();
        let partition = if number.is_multiple_of(2) { 3 } else { 0 };
        topic.record(text.as_bytes()).partition(partition).send().expect("there is room");
    };
    let (pipeline, topic) = common::open(kafka.brokers(), dir.path(), &name);
    (0..RECORDS).for_each(|number| send(&topic, number));
    // What is held is final for a flush: the partition may never be made.
    common::flush(&pipeline);
    let books = close(pipeline).stats.books;
    assert_eq!((books.delivered, books.set_aside), (RECORDS / 2, RECORDS / 2), "{books:?}");

    let (pipeline, topic) = common::open(kafka.brokers(), dir.path(), &name);
    (RECORDS..2 * RECORDS).for_each(|number| send(&topic, number));
    wait_for_hold(&pipeline, Some((&name, RECORDS)));
    let held = pipeline.stats().held;
    let held: Vec<_> = held.iter().map(|h| (h.partition, h.reason)).collect();
    assert_eq!(held, [(Some(3), "unknown_partition")]);
    kafka.oracle().grow_topic(&name, 4).unwrap();
    let flowing_after = wait_for_hold(&pipeline, None);
    common::flush(&pipeline);
    let books = close(pipeline).stats.books;
    assert_eq!((books.set_aside, books.dropped), (0, 0), "{books:?}");
    let records = kafka.oracle().read(&name).unwrap();
    let audit = Audit::new(&records, |record| Stream::Partition(record.partition));
    audit.assert_exact(&[2 * RECORDS]);
    let of_it = records.iter().filter(|r| r.partition == 3).count();
    assert_eq!(of_it as u64, RECORDS);
    say(&format!(
        "partition that didn't exist: {of_it} held, flowing {flowing_after:.1?} after the topic \
         grew: {}",
        audit.line(&[2 * RECORDS])
    ));
}

/// Every record here has a key.
fn in_key(record: &Consumed) -> Stream<'_> {
    Stream::by_key(record)
}

/// The topic is deleted under us and made again with fewer partitions: what wasn't delivered
/// before arrives in the new one; the topic beside it goes on. Keys move with the number of
/// partitions: what was in flight then may still go where its key was before, so that a key is in
/// two partitions. Nothing else is out of order, and within a partition nothing is.
#[test]
fn a_topic_deleted_under_us_is_held_and_redriven_into_the_new_one() {
    let Some(kafka) = Kafka::shared() else { return };
    let (name, beside_name) = (kafka.topic("deleted", 3), kafka.topic("stays", 1));
    let dir = private_dir();
    // librdkafka may fall silent over a topic that was made again: then the watch replaces it.
    let builder = Pipeline::builder().brokers(kafka.brokers()).wal_dir(dir.path());
    let pipeline = builder.stall_timeout(Duration::from_secs(15)).open().unwrap();
    let topic = pipeline.topic(&name).unwrap();
    pipeline.ready(Duration::from_secs(90)).expect("the broker is there");
    let beside = pipeline.topic(&beside_name).unwrap();
    for number in 0..300 {
        send(&topic, id(number), 100);
    }
    common::flush(&pipeline);
    kafka.oracle().delete_topic(&name).unwrap();
    let later = |number| Id { source: 1, number };
    let start = Instant::now();
    let mut sent = 0;
    while !pipeline.stats().held.iter().any(|h| h.topic == name) {
        assert!(start.elapsed() < Duration::from_secs(120), "{:?}", pipeline.stats());
        send(&topic, later(sent), 100);
        send(&beside, id(sent), 100);
        sent += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    let (held_after, sent_before) = (start.elapsed(), sent);
    for _ in 0..200 {
        send(&topic, later(sent), 100);
        send(&beside, id(sent), 100);
        sent += 1;
    }
    // Whatever it is that still waits, it isn't the topic beside.
    let delivered = || {
        let topics = pipeline.stats().topics;
        topics.iter().find(|t| t.name == beside_name).map_or(0, |t| t.delivered)
    };
    while delivered() < sent {
        assert!(start.elapsed() < Duration::from_secs(120), "{:?}", pipeline.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
    kafka.oracle().create_topic(&name, 2, &[]).unwrap();
    let made = Instant::now();
    wait_for_hold(&pipeline, None);
    let flowing_after = made.elapsed();
    common::flush(&pipeline);
    let report = close(pipeline);
    let books = report.stats.books;
    assert_eq!((books.delivered, books.set_aside), (300 + 2 * sent, 0), "{books:?}");
    let records = kafka.oracle().read(&name).unwrap();
    let audit = Audit::new(&records, in_key);
    let missing: Vec<Id> =
        audit.missing(&[300, sent]).into_iter().filter(|id| id.source == 1).collect();
    // Those that lie where their key was among three partitions, and no longer is among two.
    let home = |id: Id| records.iter().find(|r| Id::of(r) == Some(id)).map(|r| r.partition);
    let moved: Vec<Id> = audit.disorder.iter().map(|d| d.late).collect();
    let split = audit.disorder.iter().filter(|d| home(d.late) != home(d.after)).count();
    say(&format!(
        "deleted under us: held after {held_after:.1?}, flowing {flowing_after:.1?} after it was \
         made again, {sent} sent meanwhile, {sent_before} of them before it was held, {} not in \
         the new topic, behind newer ones {} ({split} of them of a key in two partitions), \
         duplicates {} (possible {}), rebuilds {}: {:?}",
        missing.len(),
        moved.len(),
        audit.duplicates,
        books.duplicates_possible,
        report.stats.rebuilds,
        report.stats.last_rebuild_reason
    ));
    // The old topic took what it took before it was gone.
    assert!(missing.iter().all(|id| id.number < sent_before), "{missing:?}");
    assert!(split == moved.len() && moved.iter().all(|id| id.number < sent_before), "{moved:?}");
    for partition in 0..2 {
        let part: Vec<_> = records.iter().filter(|r| r.partition == partition).cloned().collect();
        let disorder = Audit::new(&part, in_key).disorder;
        assert!(disorder.is_empty(), "within partition {partition}: {disorder:?}");
    }
}

/// New properties while one topic is held and another one suspect: both go on behind the new
/// producer, and nothing is lost or changes its place.
#[test]
fn a_reload_while_a_topic_is_held_and_another_is_suspect() {
    const RECORDS: u64 = 600;
    let Some(kafka) = Kafka::shared() else { return };
    let suspect_name = kafka.topic_with("reloaded", 2, &LIMIT);
    let held_name = format!("{suspect_name}-made-later");
    let dir = private_dir();
    let (pipeline, suspect) = common::open(kafka.brokers(), dir.path(), &suspect_name);
    let held = pipeline.topic(&held_name).unwrap();
    let is_poison = |number: u64| number % 50 == 25;
    let mut sent = 0;
    let mut some = |pipeline: &Pipeline| {
        for number in sent..sent + RECORDS {
            send(&suspect, id(number), if is_poison(number) { 30_000 } else { 100 });
            send(&held, id(number), 100);
        }
        sent += RECORDS;
        wait_for_hold(pipeline, Some((&held_name, sent)));
        sent
    };
    some(&pipeline);
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(120), "{what}: {:?}", pipeline.stats());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait("no request was refused", &|| pipeline.stats().books.reordered > 0);
    for round in 1..=3 {
        // In the middle of what is tried in smaller groups.
        pipeline.reload(&[("client.id", &format!("round-{round}"))]).expect("it is taken");
        some(&pipeline);
        wait("the new producer", &|| pipeline.stats().rebuilds >= round);
    }
    kafka.oracle().create_topic(&held_name, 2, &[]).unwrap();
    wait_for_hold(&pipeline, None);
    common::flush(&pipeline);
    let report = close(pipeline);
    let (books, poison) = (report.stats.books, sent / 50);
    assert_eq!((books.set_aside, books.dropped), (poison, 0), "{books:?}");
    let all = |name: &str| Audit::new(&kafka.oracle().read(name).unwrap(), in_key);
    let (held, suspect) = (all(&held_name), all(&suspect_name));
    held.assert_whole(&[sent]);
    let missing = suspect.missing(&[sent]);
    assert!(missing.len() as u64 == poison && missing.iter().all(|id| is_poison(id.number)));
    assert!(held.duplicates + suspect.duplicates <= books.duplicates_possible, "{books:?}");
    say(&format!(
        "reloads with a held and a suspect topic: held {}; suspect: set aside {poison}, sent again \
         {}, behind newer ones {}, duplicates {} (possible {}); rebuilds {}",
        held.line(&[sent]),
        books.reordered,
        suspect.disorder.len(),
        suspect.duplicates,
        books.duplicates_possible,
        report.stats.rebuilds
    ));
}
