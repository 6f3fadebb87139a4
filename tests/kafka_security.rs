//! Whom a real Kafka lets in: TLS and SASL, what is wrong told apart, and passwords and
//! certificates that change while records come.
#![cfg(feature = "ssl")]

mod kafka_common;
mod trace_common;

use forebay::{Pipeline, ReloadError, Stats, Topic};
use forebay_testkit::audit::{Audit, Id};
use forebay_testkit::secure::{PASSWORD, PLAIN_PASSWORD, PLAIN_USER, USER};
use forebay_testkit::{Door, Kafka, KafkaOptions, private_dir, say};
use kafka_common as common;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(120);

type Properties = Vec<(&'static str, String)>;

fn start() -> Option<Kafka> {
    trace_common::collect();
    let kafka = Kafka::start(KafkaOptions { secure: true, ..KafkaOptions::default() })?;
    common::warm_up(&kafka);
    Some(kafka)
}

/// One broker for the tests that do it no harm.
fn shared() -> Option<&'static Kafka> {
    static SHARED: OnceLock<Option<Kafka>> = OnceLock::new();
    SHARED.get_or_init(start).as_ref()
}

fn protocol(name: &str) -> Properties {
    vec![("security.protocol", name.to_owned())]
}

fn tls(kafka: &Kafka) -> Properties {
    let mut all = protocol("SSL");
    all.push(("ssl.ca.location", kafka.certificates().ca()));
    all
}

fn with_certificate(mut all: Properties, kafka: &Kafka) -> Properties {
    all.push(("ssl.certificate.location", kafka.certificates().client()));
    all.push(("ssl.key.location", kafka.certificates().client_key()));
    all
}

fn login(mechanism: &str, user: &str, password: &str) -> Properties {
    vec![
        ("sasl.mechanism", mechanism.to_owned()),
        ("sasl.username", user.to_owned()),
        ("sasl.password", password.to_owned()),
    ]
}

fn scram(kafka: &Kafka, password: &str) -> Properties {
    let mut all = protocol("SASL_SSL");
    all.push(("ssl.ca.location", kafka.certificates().ca()));
    all.extend(login("SCRAM-SHA-512", USER, password));
    all
}

fn open(brokers: &str, dir: &Path, properties: &Properties, topic: &str) -> (Pipeline, Topic) {
    let mut builder = Pipeline::builder().brokers(brokers).wal_dir(dir);
    for (name, value) in properties {
        builder = builder.extra(*name, value);
    }
    let pipeline = builder.open().expect("it opens");
    let topic = pipeline.topic(topic).expect("a good name");
    (pipeline, topic)
}

fn until(pipeline: &Pipeline, what: &str, done: impl Fn(&Stats) -> bool) -> Stats {
    let start = Instant::now();
    loop {
        let stats = pipeline.stats();
        if done(&stats) {
            return stats;
        }
        assert!(start.elapsed() < LIMIT, "{what}: {stats:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn send(topic: &Topic, records: u64) {
    for n in 0..records {
        topic.record(format!("{n}").as_bytes()).key(b"k").send().expect("there is room");
    }
}

/// Closes a pipeline that is to have delivered all of `records`, and asks the oracle.
fn assert_delivered(kafka: &Kafka, pipeline: &Pipeline, topic: &str, records: u64) {
    common::flush(pipeline);
    let report = pipeline.close(Duration::from_secs(60)).expect("it closes");
    assert!(report.complete && report.stats.books.balanced(), "{report:?}");
    let found = kafka.oracle().end_offsets(topic).expect("the topic's ends");
    assert_eq!(found.iter().sum::<i64>() as u64, records, "{report:?}");
}

#[test]
fn each_way_in_delivers() {
    let Some(kafka) = shared() else { return };
    let plain = |protocol_name| {
        let mut all = protocol(protocol_name);
        all.extend(login("PLAIN", PLAIN_USER, PLAIN_PASSWORD));
        all
    };
    let mut plain_tls = plain("SASL_SSL");
    plain_tls.push(("ssl.ca.location", kafka.certificates().ca()));
    let mut scram_open = protocol("SASL_PLAINTEXT");
    scram_open.extend(login("SCRAM-SHA-512", USER, PASSWORD));
    let ways = [
        ("tls", Door::Tls, tls(kafka)),
        ("mutual tls", Door::Mutual, with_certificate(tls(kafka), kafka)),
        ("plain over tls", Door::TlsLogin, plain_tls),
        ("scram over tls", Door::TlsLogin, scram(kafka, PASSWORD)),
        ("plain", Door::Login, plain("SASL_PLAINTEXT")),
        ("scram", Door::Login, scram_open),
    ];
    for (name, door, properties) in &ways {
        let dir = private_dir();
        let topic_name = kafka.topic("ways", 1);
        let (pipeline, topic) = open(&kafka.door(*door), dir.path(), properties, &topic_name);
        pipeline.ready(LIMIT).unwrap_or_else(|e| panic!("{name}: {e}"));
        send(&topic, 500);
        let states = pipeline.stats().states;
        assert_eq!((states.auth_failed, states.tls_failed), (None, None), "{name}");
        assert_delivered(kafka, &pipeline, &topic_name, 500);
    }
    say(&format!("security: {} ways in, 500 records each, all delivered", ways.len()));
}

/// Every wrong way in: its state says what it is, no record is lost, and a later run that is set
/// up right delivers what the log kept.
#[test]
fn what_is_wrong_is_told_apart_and_nothing_is_lost() {
    let Some(kafka) = shared() else { return };
    let mut stranger = protocol("SSL");
    stranger.push(("ssl.ca.location", kafka.certificates().stranger()));
    let mut unknown_user = scram(kafka, PASSWORD);
    unknown_user.push(("sasl.username", "nobody".to_owned()));
    let mut wrong_plain = scram(kafka, PASSWORD);
    wrong_plain.extend(login("PLAIN", PLAIN_USER, "wrong"));
    let mut no_mechanism = scram(kafka, PASSWORD);
    no_mechanism.push(("sasl.mechanism", "SCRAM-SHA-256".to_owned()));
    let cases = [
        ("wrong CA", Door::Tls, stranger, "isn't signed by a CA that ssl.ca.location names"),
        ("no CA", Door::Tls, protocol("SSL"), "isn't signed by a CA that ssl.ca.location names"),
        ("expired", Door::Expired, tls(kafka), "(subject=/CN=expired, issuer=/CN=ca) has expired"),
        ("other host", Door::Misnamed, tls(kafka), "is for another host"),
        ("no client certificate", Door::Mutual, tls(kafka), "refuses the client's certificate"),
        ("wrong password", Door::TlsLogin, scram(kafka, "wrong"), "invalid credentials"),
        ("wrong user", Door::TlsLogin, unknown_user, "invalid credentials"),
        ("wrong password, PLAIN", Door::TlsLogin, wrong_plain, "Invalid username or password"),
        ("mechanism", Door::TlsLogin, no_mechanism, "Unsupported SASL mechanism"),
    ];
    let topic_name = kafka.topic("wrong", 1);
    let mut sent = 0;
    for (name, door, properties, expected) in &cases {
        let dir = private_dir();
        let address = kafka.door(*door);
        let (pipeline, topic) = open(&address, dir.path(), properties, &topic_name);
        send(&topic, 100);
        let told = |stats: &Stats| {
            let states = &stats.states;
            states.auth_failed.clone().or_else(|| states.tls_failed.clone())
        };
        let stats = until(&pipeline, name, |stats| told(stats).is_some());
        let reason = told(&stats).unwrap_or_default();
        assert!(reason.contains(expected) && reason.contains(&address), "{name}: {reason}");
        assert_eq!(stats.states.auth_failed.is_some(), *door == Door::TlsLogin, "{name}");
        let not_ready = pipeline.ready(Duration::ZERO).unwrap_err().to_string();
        assert!(not_ready.contains(expected), "{name}: {not_ready}");
        until(&pipeline, "the log has them", |stats| stats.books.in_wal == 100);
        let report = pipeline.close(Duration::ZERO).expect("it closes");
        assert!(report.complete && report.stats.books.in_wal == 100, "{name}: {report:?}");
        drop(pipeline);
        say(&format!("security: {name}: {reason}"));
        sent += 100;
        let (pipeline, _) = open(&kafka.door(Door::Tls), dir.path(), &tls(kafka), &topic_name);
        assert_delivered(kafka, &pipeline, &topic_name, sent);
    }
}

/// Not our refusal, but nobody is let in: the state says what librdkafka thinks it is.
#[test]
fn tls_to_an_open_listener_and_none_to_a_tls_one_are_named() {
    let Some(kafka) = shared() else { return };
    for (name, brokers, properties, expected) in [
        ("TLS to an open one", kafka.brokers().to_owned(), tls(kafka), "PLAINTEXT broker listener"),
        // librdkafka says no more of this one.
        ("none to TLS", kafka.door(Door::Tls), Properties::new(), "brokers are down"),
    ] {
        let dir = private_dir();
        let (pipeline, topic) = open(&brokers, dir.path(), &properties, "unused");
        send(&topic, 1);
        let stats = until(&pipeline, name, |stats| {
            let states = &stats.states;
            states.disconnected.as_ref().is_some_and(|r| r.contains(expected))
        });
        say(&format!("security: {name}: {}", stats.states.disconnected.unwrap_or_default()));
        pipeline.close(Duration::ZERO).expect("it closes");
    }
}

/// A password that is rotated under a pipeline: refused at the next connection, kept, and
/// delivered once the new one is reloaded; and one that was never right until the broker has it.
#[test]
fn a_rotated_password_is_reloaded_and_nothing_is_lost() {
    let Some(mut kafka) = start() else { return };
    let topic_name = kafka.topic("rotated", common::PARTITIONS);
    let dir = private_dir();
    let address = kafka.door(Door::TlsLogin);
    let (pipeline, topic) = open(&address, dir.path(), &scram(&kafka, "not yet"), &topic_name);
    let load = common::Load::start(&topic, 2, 5_000, u64::MAX);
    until(&pipeline, "refused", |stats| stats.states.auth_failed.is_some());
    until(&pipeline, "spilled", |stats| stats.books.spilled > 1_000);
    // The broker comes to have the client's password: nothing has to be done here.
    kafka.oracle().set_password(USER, "not yet").expect("it is set");
    let stats = until(&pipeline, "let in", |stats| stats.states.auth_failed.is_none());
    assert!(stats.rebuilds == 0, "{stats:?}");
    until(&pipeline, "drained", |stats| stats.books.in_wal == 0 && stats.books.delivered > 0);

    // Rotated for good; connections that are open stay so until the broker is restarted.
    kafka.oracle().set_password(USER, "rotated").expect("it is set");
    kafka.stop();
    kafka.restart();
    until(&pipeline, "refused again", |stats| stats.states.auth_failed.is_some());
    let before = pipeline.stats().books.spilled;
    until(&pipeline, "spilled again", |stats| stats.books.spilled > before + 1_000);
    pipeline.reload(&[("sasl.password", "wrong as well")]).expect("it can be tried");
    assert!(pipeline.ready(Duration::from_secs(8)).is_err(), "still refused");
    assert!(pipeline.stats().states.auth_failed.is_some());
    pipeline.reload(&[("sasl.password", "rotated")]).expect("it is taken");
    pipeline.ready(LIMIT).expect("let in");
    let sent = load.stop();
    common::flush(&pipeline);
    let report = pipeline.close(Duration::from_secs(60)).expect("it closes");
    assert_eq!(report.stats.states.auth_failed, None);
    let counts = common::counts(&sent);
    let total: u64 = counts.iter().sum();
    let refused = sent.iter().map(|s| s.refused).sum();
    common::assert_all_delivered(&report, total, refused);
    let records = kafka.oracle().read(&topic_name).expect("the topic can be read");
    let audit = Audit::new(&records, common::stream);
    audit.assert_whole(&counts);
    assert!(audit.duplicates <= report.stats.books.duplicates_possible, "{}", audit.line(&counts));
    let told = trace_common::lines("auth_failed");
    let told: Vec<_> = told.iter().filter(|l| l.contains(&address)).collect();
    let over = trace_common::lines("auth_failed is over").len();
    // It began twice. What else the broker said of it in between is told, but nothing once more.
    let times = |line: &String| told.iter().filter(|other| *other == &line).count();
    assert!(told.len() >= 2 && told.iter().all(|line| times(line) <= 2), "{told:#?}");
    assert!(over >= 2, "and one when it is over");
    say(&format!(
        "security: a password rotated twice: {}; rebuilds {}, {}",
        common::books_line(&report.stats),
        report.stats.rebuilds,
        audit.line(&counts)
    ));
}

#[test]
fn a_certificate_that_is_renewed_in_place_is_read_again() {
    let Some(kafka) = shared() else { return };
    let topic_name = kafka.topic("renewed", 1);
    let (dir, files) = (private_dir(), private_dir());
    let ca = files.path().join("ca.pem");
    std::fs::copy(kafka.certificates().stranger(), &ca).expect("copied");
    let mut properties = protocol("SSL");
    properties.push(("ssl.ca.location", ca.display().to_string()));
    let (pipeline, topic) = open(&kafka.door(Door::Mutual), dir.path(), &properties, &topic_name);
    send(&topic, 300);
    until(&pipeline, "refused", |stats| stats.states.tls_failed.is_some());
    std::fs::copy(kafka.certificates().ca(), &ca).expect("copied");
    pipeline.reload(&[]).expect("the file is good");
    // The broker is trusted now; it asks for ours.
    until(&pipeline, "asked for a certificate", |stats| {
        stats.states.tls_failed.as_ref().is_some_and(|r| r.contains("the client's certificate"))
    });
    let certificates = kafka.certificates();
    let (certificate, key) = (certificates.client(), certificates.client_key());
    let changes =
        [("ssl.certificate.location", certificate.as_str()), ("ssl.key.location", key.as_str())];
    pipeline.reload(&changes).expect("the files are good");
    pipeline.ready(LIMIT).expect("let in");
    assert_eq!(pipeline.stats().rebuilds, 2);
    assert_delivered(kafka, &pipeline, &topic_name, 300);
}

#[test]
fn a_broker_whose_certificate_is_renewed_is_found_back_by_itself() {
    let Some(mut kafka) = start() else { return };
    let topic_name = kafka.topic("expired", 1);
    let dir = private_dir();
    let (pipeline, topic) = open(&kafka.door(Door::Expired), dir.path(), &tls(&kafka), &topic_name);
    send(&topic, 300);
    until(&pipeline, "refused", |stats| stats.states.tls_failed.is_some());
    kafka.stop();
    kafka.renew_certificate();
    kafka.restart();
    until(&pipeline, "trusted", |stats| stats.states.tls_failed.is_none());
    assert_eq!(pipeline.stats().rebuilds, 0);
    assert_delivered(&kafka, &pipeline, &topic_name, 300);
}

#[test]
fn a_reload_that_cannot_work_changes_nothing() {
    let Some(kafka) = shared() else { return };
    let topic_name = kafka.topic("no-reload", 1);
    let dir = private_dir();
    let properties = scram(kafka, PASSWORD);
    let (pipeline, topic) = open(&kafka.door(Door::TlsLogin), dir.path(), &properties, &topic_name);
    pipeline.ready(LIMIT).expect("let in");
    for (name, value) in [
        ("ssl.ca.location", "/nonexistent/ca.pem"),
        ("ssl.key.pem", "no key at all"),
        ("sasl.password", ""),
        ("security.protocol", "PLAINTEXT"),
        ("acks", "0"),
        ("no.such.property", "1"),
        ("socket.timeout.ms", "soon"),
    ] {
        let error = pipeline.reload(&[(name, value)]).expect_err(name);
        let text = error.to_string();
        let named = text.contains(name) || name == "security.protocol" && text.contains("ssl.");
        assert!(named, "{name}: {text}");
        assert!(!text.contains("no key at all"), "{text}");
        assert!(matches!(error, ReloadError::Config(_) | ReloadError::Kafka(_)), "{error:?}");
    }
    send(&topic, 300);
    common::flush(&pipeline);
    let stats = pipeline.stats();
    assert_eq!((stats.rebuilds, stats.states.rebuilding), (0, false));
    assert_delivered(kafka, &pipeline, &topic_name, 300);
    assert_eq!(pipeline.reload(&[]), Err(ReloadError::Closed));
    let builder = Pipeline::builder().sink(forebay::MemorySink::new()).at_most_once();
    let memory = builder.open().expect("it opens");
    assert_eq!(memory.reload(&[]), Err(ReloadError::Unsupported));
}

/// Reloads under load: each is a rebuild, and one of a healthy producer that has time to end
/// costs nothing.
#[test]
fn reloads_of_a_healthy_pipeline_lose_nothing_and_keep_the_order() {
    let Some(kafka) = shared() else { return };
    let topic_name = kafka.topic("reloads", common::PARTITIONS);
    let dir = private_dir();
    let properties = scram(kafka, PASSWORD);
    let (pipeline, topic) = open(&kafka.door(Door::TlsLogin), dir.path(), &properties, &topic_name);
    pipeline.ready(LIMIT).expect("let in");
    let load = common::Load::start(&topic, 2, 10_000, u64::MAX);
    for n in 1..=4 {
        pipeline.reload(&[("client.id", "another"), ("linger.ms", "1")]).expect_err("ours");
        pipeline.reload(&[("client.id", "another")]).expect("it is taken");
        pipeline.ready(LIMIT).expect("let in");
        let before = pipeline.stats().books.delivered;
        until(&pipeline, "delivers", |s| s.books.delivered > before && s.rebuilds == n);
    }
    let sent = load.stop();
    common::flush(&pipeline);
    let report = pipeline.close(Duration::from_secs(60)).expect("it closes");
    let counts = common::counts(&sent);
    let refused = sent.iter().map(|s| s.refused).sum();
    common::assert_all_delivered(&report, counts.iter().sum(), refused);
    let records = kafka.oracle().read(&topic_name).expect("the topic can be read");
    let audit = Audit::new(&records, common::stream);
    audit.assert_whole(&counts);
    assert!(audit.duplicates <= report.stats.books.duplicates_possible, "{}", audit.line(&counts));
    say(&format!(
        "security: 4 reloads under load: {}; {}",
        common::books_line(&report.stats),
        audit.line(&counts)
    ));
}

/// A topic that the user may no longer write to, or no longer see, is held with what it had in
/// flight; the topic beside it goes on. Once it is permitted everything arrives by itself.
#[test]
fn a_forbidden_topic_is_held_and_redriven_when_it_is_permitted() {
    let Some(kafka) = shared() else { return };
    let mut properties = protocol("SASL_PLAINTEXT");
    properties.extend(login("PLAIN", PLAIN_USER, PLAIN_PASSWORD));
    for operation in ["Write", "All"] {
        let name = kafka.topic("forbidden", common::PARTITIONS);
        let beside_name = kafka.topic("permitted", common::PARTITIONS);
        let dir = private_dir();
        let (pipeline, topic) = open(&kafka.door(Door::Login), dir.path(), &properties, &name);
        let beside = pipeline.topic(&beside_name).expect("a good name");
        pipeline.ready(LIMIT).expect("it is let in");
        let mut sent = 0;
        let mut some = |records: u64| {
            for number in sent..sent + records {
                let id = Id { source: 0, number };
                assert!(common::send(&topic, id) && common::send(&beside, id), "no room");
            }
            sent += records;
            sent
        };
        some(500);
        common::flush(&pipeline);
        assert!(pipeline.stats().held.is_empty());

        kafka.oracle().forbid(PLAIN_USER, &name, operation).expect("it is forbidden");
        let start = Instant::now();
        let held = |stats: &Stats| stats.held.iter().any(|h| h.topic == name);
        while !held(&pipeline.stats()) {
            assert!(start.elapsed() < LIMIT, "{operation}: {:?}", pipeline.stats());
            some(1);
            std::thread::sleep(Duration::from_millis(2));
        }
        let held_after = start.elapsed();
        let all = some(1_000);
        // Whatever waits, it isn't the topic beside.
        let stats = until(&pipeline, operation, |stats| {
            let beside = stats.topics.iter().find(|t| t.name == beside_name);
            held(stats) && beside.is_some_and(|t| t.delivered == all)
        });
        let hold = stats.held.iter().find(|h| h.topic == name).expect("it is held");
        assert_eq!((hold.reason, stats.states.auth_failed), ("topic_unauthorised", None));

        let start = Instant::now();
        kafka.oracle().permit(&name).expect("it is permitted");
        until(&pipeline, operation, |stats| stats.held.is_empty());
        let flowing_after = start.elapsed();
        let all = some(500);
        common::flush(&pipeline);
        let report = pipeline.close(Duration::from_secs(60)).expect("it closes");
        common::assert_all_delivered(&report, 2 * all, 0);
        let audits = [&name, &beside_name]
            .map(|name| Audit::new(&kafka.oracle().read(name).unwrap(), common::stream));
        audits.iter().for_each(|audit| audit.assert_whole(&[all]));
        say(&format!(
            "forbidden ({operation}): held after {held_after:.1?}, flowing {flowing_after:.1?} after \
             it was permitted: {}; the topic beside: {}; rebuilds {}",
            audits[0].line(&[all]),
            audits[1].line(&[all]),
            report.stats.rebuilds
        ));
    }
}
