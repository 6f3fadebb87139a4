//! What `forebay pipe` makes of its input, on a healthy Kafka.

mod pipe_common;

use forebay_testkit::{Consumed, Kafka, private_dir, say};
use pipe_common as common;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(200);

type Pair<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

fn pairs(records: &[Consumed]) -> Vec<Pair<'_>> {
    records.iter().map(|r| (r.key.as_deref(), r.value.as_deref())).collect()
}

#[test]
fn each_line_is_a_record_whatever_its_bytes() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic = kafka.topic("bytes", 1);
    let dir = private_dir();
    let input = b"user|value\n\nno separator\n|empty key\nuser|\nuser|a|b\n\xff\xfe|\x00\x80\nlast, no line feed";
    let mut pipe = common::pipe(kafka.brokers(), &topic, dir.path());
    // However late this Kafka is, that alone journals nothing.
    pipe.args(["--loss-window-ms", "600000"]);
    let ended = common::run(pipe, input, LIMIT);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let json = common::closing(&ended);
    let of = |name| common::count(&json, name);
    assert_eq!((of("accepted"), of("delivered"), of("spilled")), (8, 8, 0), "{json}");
    let records = kafka.oracle().read(&topic).unwrap();
    let wanted: [Pair<'_>; 8] = [
        (Some(b"user"), Some(b"value")),
        (None, Some(b"")),
        (None, Some(b"no separator")),
        (Some(b""), Some(b"empty key")),
        (Some(b"user"), Some(b"")),
        (Some(b"user"), Some(b"a|b")),
        (Some(b"\xff\xfe"), Some(b"\x00\x80")),
        (None, Some(b"last, no line feed")),
    ];
    assert_eq!(pairs(&records), wanted);
}

#[test]
fn without_a_separator_there_are_no_keys_and_without_input_there_is_nothing() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic = kafka.topic("keyless", 1);
    let mut command = common::forebay();
    command.args(["pipe", "--brokers", kafka.brokers(), "--topic", &topic]);
    command.args(["--at-most-once", "--json"]);
    let ended = common::run(command, b"a|b\tc\n", LIMIT);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert_eq!(common::count(&common::closing(&ended), "delivered"), 1);
    let records = kafka.oracle().read(&topic).unwrap();
    assert_eq!(pairs(&records), [(None, Some(&b"a|b\tc"[..]))]);

    let dir = private_dir();
    let ended = common::drain(kafka.brokers(), &topic, dir.path());
    let json = common::closing(&ended);
    assert_eq!(common::count(&json, "accepted"), 0, "{json}");
    assert_eq!(kafka.oracle().end_offsets(&topic).unwrap(), [1]);
}

#[test]
fn a_line_of_ten_megabytes_is_named_and_the_rest_goes_on() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic = kafka.topic("long-line", 1);
    let dir = private_dir();
    let mut input = b"before\n".to_vec();
    input.extend(std::iter::repeat_n(b'x', 10_000_000));
    input.extend_from_slice(b"\nafter\n");
    let ended = common::run(common::pipe(kafka.brokers(), &topic, dir.path()), &input, LIMIT);
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr);
    let json = common::closing(&ended);
    let of = |name| common::count(&json, name);
    assert_eq!((of("accepted"), of("delivered"), of("refused")), (2, 2, 1), "{json}");
    // Named: which line, in few words, not the line itself.
    assert!(ended.stderr.contains("line 2"), "{}", ended.stderr);
    assert!(ended.stderr.len() < 1000, "{} bytes of standard error", ended.stderr.len());
    let records = kafka.oracle().read(&topic).unwrap();
    assert_eq!(pairs(&records), [(None, Some(&b"before"[..])), (None, Some(b"after"))]);
}

#[test]
fn a_large_input_goes_through_as_fast_as_it_is_read() {
    use forebay_testkit::audit::{Audit, Stream};
    use forebay_testkit::lines::LogLines;
    let _heavy = forebay_testkit::heavy();
    let Some(kafka) = Kafka::shared() else { return };
    let topic = kafka.topic("large", 3);
    let dir = private_dir();
    let input: Vec<u8> = LogLines::new(3, 0, 0).take(200_000).flatten().collect();
    let ended = common::run(common::pipe(kafka.brokers(), &topic, dir.path()), &input, LIMIT);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let json = common::closing(&ended);
    let records = kafka.oracle().read(&topic).unwrap();
    let audit = Audit::new(&records, Stream::by_key);
    say(&format!(
        "pipe, {:.1} MB as fast as it reads: {}; {}",
        input.len() as f64 / 1e6,
        audit.line(&[200_000]),
        common::figures(&json)
    ));
    audit.assert_exact(&[200_000]);
    assert_eq!(common::count(&json, "accepted"), 200_000);
    assert_eq!(common::count(&json, "delivered"), 200_000);
}

#[test]
fn a_bulk_load_arrives_whole_whether_it_waits_or_spills() {
    let Some(kafka) = Kafka::shared() else { return };
    const LINES: u64 = 300_000;
    let input: String = (0..LINES).map(|n| format!("{n:0100}\n")).collect();
    for overflow in ["wait", "spill"] {
        let topic = kafka.topic("bulk", 1);
        let dir = private_dir();
        let mut pipe = common::pipe(kafka.brokers(), &topic, dir.path());
        pipe.args(["--overflow", overflow]);
        let ended = common::run(pipe, input.as_bytes(), LIMIT);
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        let json = common::closing(&ended);
        let of = |name| common::count(&json, name);
        // How much is spilled depends on how fast this Kafka is; that none is while it answers is
        // the flusher's own test.
        say(&format!("{overflow}: {LINES} lines, {} spilled", of("spilled")));
        assert_eq!((of("accepted"), of("delivered")), (LINES, LINES), "{json}");
        let records = kafka.oracle().read(&topic).unwrap();
        let in_order = records
            .iter()
            .zip(input.lines())
            .all(|(r, line)| r.value.as_deref() == Some(line.as_bytes()));
        assert!(in_order && records.len() as u64 == LINES);
    }
}
