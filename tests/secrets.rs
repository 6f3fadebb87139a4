//! Secrets that are given to the library: none comes out of it, whatever it is asked.
#![cfg(feature = "kafka")]

mod trace_common;

use forebay::Pipeline;
use forebay_testkit::log_dir;
use forebay_testkit::secure::{PLAIN_USER, SECRETS};
use forebay_testkit::{Door, Kafka, KafkaOptions, private_dir, say};
use std::path::Path;
use std::time::{Duration, Instant};

/// In every secret.
const CANARY: &str = "canary-7Wq";

fn assert_silent(what: &str, text: &str) {
    assert!(!text.contains("canary"), "{what}: {text}");
}

/// Secrets of every shape that a text may break at: whole, with a NUL byte, over the room that
/// librdkafka has for an error, cut in the middle of a letter.
fn shapes() -> [String; 4] {
    let long = "ä".repeat(300);
    [
        CANARY.to_owned(),
        format!("{CANARY}\0{CANARY}"),
        format!("{CANARY}{long}"),
        format!("-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n"),
    ]
}

#[test]
fn errors_and_debug_hold_no_secret() {
    trace_common::collect();
    let protocols: [&[(&str, &str)]; 3] = [
        &[],
        &[("security.protocol", "ssl")],
        &[
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", "u"),
            ("ssl.key.location", "/nonexistent"),
        ],
    ];
    let (mut texts, mut opened) = (0, 0);
    for name in SECRETS {
        for value in shapes() {
            for protocol in protocols {
                let mut builder = Pipeline::builder().brokers("127.0.0.1:1").at_most_once();
                for (name, value) in protocol {
                    builder = builder.extra(*name, *value);
                }
                builder = builder.extra(name, &value);
                assert_silent(name, &format!("{builder:?} {builder:#?}"));
                match builder.open() {
                    Ok(pipeline) => {
                        opened += 1;
                        let error = pipeline.reload(&[("sasl.password", CANARY), ("acks", "1")]);
                        let error = error.expect_err("acks is ours");
                        assert_silent(name, &format!("{error} {error:?} {pipeline:?}"));
                    }
                    Err(error) => assert_silent(name, &format!("{error} {error:?}")),
                }
                texts += 1;
            }
        }
    }
    for brokers in [format!("sasl_ssl://u:{CANARY}@h:1"), format!("h:1,u:{CANARY}@h:2")] {
        let builder = Pipeline::builder().brokers(&brokers).at_most_once();
        assert_silent("brokers", &format!("{builder:?}"));
        let error = builder.open().expect_err("it holds a password");
        assert_silent("brokers", &format!("{error} {error:?}"));
        let builder = Pipeline::builder().brokers("h:1").at_most_once();
        let error = builder.extra("bootstrap.servers", &brokers).open().expect_err("ours");
        assert_silent("brokers", &format!("{error} {error:?}"));
    }
    assert_eq!(trace_common::lines("canary"), Vec::<String>::new());
    assert!(opened < texts, "{opened} of {texts} opened");
    say(&format!("secrets: {texts} hostile settings, {opened} of them opened; not one shown"));
}

/// A refused password, with librdkafka saying all it can, at every level; then a rotated one.
#[test]
fn a_life_with_secrets_tells_none_and_writes_none() {
    trace_common::collect();
    let Some(kafka) = Kafka::start(KafkaOptions { secure: true, ..KafkaOptions::default() }) else {
        return;
    };
    let topic_name = kafka.topic("secrets", 1);
    let dir = private_dir();
    let mut builder = Pipeline::builder()
        .wal_dir(dir.path())
        .extra("debug", "all")
        .extra("sasl.mechanism", "PLAIN")
        .extra("sasl.username", PLAIN_USER)
        .extra("sasl.password", CANARY);
    builder = if cfg!(feature = "ssl") {
        builder
            .brokers(kafka.door(Door::TlsLogin))
            .extra("security.protocol", "SASL_SSL")
            .extra("ssl.ca.location", kafka.certificates().ca())
            .extra("ssl.key.password", format!("{CANARY}-key"))
            .extra("ssl.keystore.password", format!("{CANARY}-store"))
    } else {
        builder.brokers(kafka.door(Door::Login)).extra("security.protocol", "SASL_PLAINTEXT")
    };
    let pipeline = builder.open().expect("it opens");
    let topic = pipeline.topic(&topic_name).expect("a good name");
    for _ in 0..100 {
        topic.send(b"a record").expect("there is room");
    }
    let until = |what: &str, done: &dyn Fn(&forebay::Stats) -> bool| {
        let start = Instant::now();
        loop {
            let stats = pipeline.stats();
            assert_silent(what, &format!("{stats:?}"));
            if done(&stats) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(120), "{what}: {stats:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    until("refused", &|s| s.states.auth_failed.is_some() && s.books.in_wal == 100);
    let not_ready = pipeline.ready(Duration::ZERO).expect_err("refused");
    assert_silent("ready", &format!("{not_ready} {not_ready:?}"));
    let rotated = format!("{CANARY}-rotated");
    pipeline.reload(&[("sasl.password", &rotated)]).expect("it can be tried");
    until("refused again", &|s| s.rebuilds == 1 && s.states.disconnected.is_some());
    let report = pipeline.close(Duration::ZERO).expect("it closes");
    assert_silent("close", &format!("{report:?}"));
    let files = assert_not_in_files(dir.path());
    let lines = trace_common::lines("").len();
    let seen = trace_common::lines("auth_failed");
    assert!(!seen.is_empty() && lines > 100, "librdkafka said little: {lines} lines");
    assert_eq!(trace_common::lines("canary"), Vec::<String>::new());
    assert!(log_dir::segments(dir.path()).iter().any(|s| s.exists()), "a log was written");
    say(&format!("secrets: {lines} lines at TRACE and {files} files of a log: not one shown"));
}

fn assert_not_in_files(dir: &Path) -> usize {
    let mut files = 0;
    for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
        if entry.path().is_dir() {
            files += assert_not_in_files(&entry.path());
            continue;
        }
        let bytes = std::fs::read(entry.path()).expect("a file");
        let found = bytes.windows(CANARY.len()).any(|w| w == CANARY.as_bytes());
        assert!(!found, "{}", entry.path().display());
        files += 1;
    }
    files
}
