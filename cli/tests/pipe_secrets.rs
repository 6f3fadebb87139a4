//! Secrets that are given to the command: none comes out of it, and a rotated one is read again.

mod pipe_common;

use forebay_testkit::process::{self, Ended, Running, Signal};
use forebay_testkit::secure::{PLAIN_PASSWORD, PLAIN_USER, SECRETS};
use forebay_testkit::{Door, Kafka, KafkaOptions, dead_port, private_dir, say};
use pipe_common as common;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);
const CANARY: &str = "canary-7Wq-hunter2";

/// Names that are almost a secret's.
const ALMOST: [&str; 2] = ["no.such.property", "security.protocol.password"];

fn assert_silent(what: &str, ended: &Ended, code: i32) {
    assert_eq!(ended.code(), Some(code), "{what}: {ended:?}");
    for text in [&ended.stdout, &ended.stderr] {
        assert!(!text.contains("canary") && !text.contains("hunter2"), "{what}: {ended:?}");
    }
}

fn assert_not_in_files(dir: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            files += assert_not_in_files(&entry.path());
        } else {
            let bytes = fs::read(entry.path()).unwrap();
            let found = bytes.windows(CANARY.len()).any(|w| w == CANARY.as_bytes());
            assert!(!found, "{}", entry.path().display());
            files += 1;
        }
    }
    files
}

/// `forebay` with these words, and the canary where one says so.
fn forebay(words: &[&str]) -> Command {
    let mut command = common::forebay();
    command.args(words.iter().map(|word| word.replace("CANARY", CANARY)));
    command
}

#[test]
fn no_secret_comes_out_of_the_command() {
    let brokers = format!("127.0.0.1:{}", dead_port());
    let dir = private_dir();
    let wal = dir.path().join("wal");
    let wal = wal.to_str().unwrap();
    let pipe = ["pipe", "--brokers", &brokers, "--topic", "t", "--wal-dir", wal];
    let replay = ["wal", "replay", wal, "--brokers", &brokers];
    let with = |command: &[&str], more: &[&str]| forebay(&[command, more].concat());
    let run = |command: Command| common::run(command, b"a record\n", LIMIT);
    let mut runs = 0;
    let mut check = |what: &str, ended: &Ended, code: i32| {
        assert_silent(what, ended, code);
        runs += 1;
    };

    // A log to replay, made by a run whose password is the secret, and that says all it can.
    let login = ["-X", "security.protocol=SASL_PLAINTEXT", "-X", "sasl.mechanism=PLAIN", "-X"];
    let login = [&login[..], &["sasl.username=u", "-X", "sasl.password=CANARY"]].concat();
    let mut running =
        Running::start(with(&pipe, &[&login[..], &["--json", "-X", "debug=all"]].concat()))
            .unwrap();
    let mut input = running.take_stdin();
    input.write_all(b"a record\n").unwrap();
    // Long enough for librdkafka to say a lot.
    std::thread::sleep(Duration::from_secs(1));
    common::until_in_log(wal.as_ref(), 1);
    running.terminate();
    let ended = running.wait(LIMIT);
    drop(input);
    check("a run", &ended, 0);
    assert_eq!(common::closing(&ended)["in_wal"], 1);
    let files = assert_not_in_files(wal.as_ref());

    for name in SECRETS.into_iter().chain(ALMOST) {
        for value in ["CANARY", "CANARY\u{e9}\u{e9}", " CANARY"] {
            let property = format!("{name}={value}");
            check(&property, &run(with(&pipe, &["-X", &property])), 1);
        }
        let property = format!("{name}=CANARY");
        check(&property, &run(with(&replay, &["-X", &property])), 1);
        let tls = ["-X", "security.protocol=SSL", "-X", &property];
        // Nothing is wrong with these two alone: the run would go on.
        let opens =
            cfg!(feature = "ssl") && ["ssl.key.password", "ssl.keystore.password"].contains(&name);
        if !opens {
            check(&property, &run(with(&pipe, &tls)), 1);
        }
        let no_pair = property.replace('=', " ");
        for command in [&pipe[..], &replay[..]] {
            check(&no_pair, &run(with(command, &["-X", &no_pair])), 2);
            check("=", &run(with(command, &["-X", "=CANARY"])), 2);
        }
    }
    let url = "sasl_ssl://user:CANARY@127.0.0.1:1";
    check(url, &run(forebay(&["pipe", "--brokers", url, "--topic", "t", "--at-most-once"])), 1);
    check(url, &run(forebay(&["wal", "replay", wal, "--brokers", url])), 1);

    let file = dir.path().join("properties");
    for text in ["sasl.password CANARY", "sasl.password=CANARY", "=CANARY", "a=1\nCANARY\n"] {
        fs::write(&file, text.replace("CANARY", CANARY)).unwrap();
        let given = ["--properties-file", file.to_str().unwrap()];
        check(text, &run(with(&pipe, &given)), 1);
        check(text, &run(with(&replay, &given)), 1);
    }
    for words in [["wal", "ls", wal], ["wal", "export", wal], ["wal", "verify", wal]] {
        check(words[1], &run(forebay(&words)), 0);
    }
    say(&format!("secrets: {runs} runs of the command and {files} files of a log: not one shown"));
}

/// The password in the file is wrong, then right: SIGHUP is all that it takes.
#[test]
fn a_password_in_a_file_is_read_again_at_sighup() {
    let options = KafkaOptions { secure: true, ..KafkaOptions::default() };
    let Some(kafka) = Kafka::start(options) else { return };
    let topic = kafka.topic("sighup", 1);
    let dir = private_dir();
    let file = dir.path().join("properties");
    let write = |password: &str| {
        let text = format!(
            "# A login without TLS\nsecurity.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\n\
             sasl.username={PLAIN_USER}\nsasl.password={password}\n"
        );
        fs::write(&file, text).unwrap();
    };
    write(CANARY);
    let mut command = common::pipe(&kafka.door(Door::Login), &topic, &dir.path().join("wal"));
    command.arg("--properties-file").arg(&file).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process::spawn(command).unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    let mut until = |what: &str| {
        while !said.contains(what) {
            assert!(errors.read_line(&mut said).unwrap() > 0, "{what}: it ended: {said}");
        }
        said.clone()
    };
    input.write_all(b"k|1\nk|2\n").unwrap();
    until("auth_failed: ");
    let hang_up = |child: &Child| process::signal(child, Signal::HUP).expect("it runs");
    fs::write(&file, "sasl.password").unwrap();
    hang_up(&child);
    until("line 1: must be NAME=VALUE; the properties stay as they were");
    write(PLAIN_PASSWORD);
    hang_up(&child);
    until("the properties are read again");
    until("Kafka lets us in again");
    input.write_all(b"k|3\n").unwrap();
    drop(input);
    let start = Instant::now();
    let status = child.wait().unwrap();
    let said = until("");
    assert!(status.success() && !said.contains("canary"), "{status}: {said}");
    let records = kafka.oracle().read(&topic).unwrap();
    let values: Vec<_> = records.iter().filter_map(|r| r.value.as_deref()).collect();
    assert_eq!(values, [b"1", b"2", b"3"]);
    say(&format!(
        "secrets: read again at SIGHUP, 3 of 3 records, ended in {:.1?}",
        start.elapsed()
    ));
}
