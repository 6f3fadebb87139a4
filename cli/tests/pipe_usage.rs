//! How `forebay` answers what can't be done: one line, what to do, and an exit code. No Kafka.

mod pipe_common;

use forebay_testkit::process::Running;
use forebay_testkit::{dead_port, private_dir, say};
use pipe_common as common;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

fn nowhere() -> String {
    format!("127.0.0.1:{}", dead_port())
}

#[test]
fn help_names_every_option_and_shows_an_example() {
    let mut command = common::forebay();
    command.args(["pipe", "--help"]);
    let ended = common::run(command, b"", LIMIT);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let options = [
        "--brokers",
        "--topic",
        "--wal-dir",
        "--at-most-once",
        "--key-separator",
        "--loss-window-ms",
        "--order",
        "--close-ms",
        "--json",
    ];
    for option in options {
        assert!(ended.stdout.contains(option), "no {option} in {}", ended.stdout);
    }
    assert!(ended.stdout.to_lowercase().contains("example"), "{}", ended.stdout);
    assert!(ended.stdout.contains("forebay pipe --brokers"), "{}", ended.stdout);
}

#[test]
fn wrong_usage_is_exit_2() {
    let wrong: &[&[&str]] = &[
        &[],
        &["no-such-command"],
        &["pipe"],
        &["pipe", "--brokers", "b:1"],
        &["pipe", "--brokers", "b:1", "--topic", "t", "--no-such-option"],
        &["pipe", "--brokers", "b:1", "--topic", "t", "--at-most-once", "--wal-dir", "d"],
        &["pipe", "--brokers", "b:1", "--topic", "t", "--wal-dir", "d", "--close-ms", "soon"],
        &["pipe", "--brokers", "b:1", "--topic", "t", "--wal-dir", "d", "--key-separator", ""],
        &["pipe", "--brokers", "b:1", "--topic", "t", "--wal-dir", "d", "--order", "both"],
    ];
    for args in wrong {
        let mut command = common::forebay();
        command.args(*args);
        let ended = common::run(command, b"", LIMIT);
        assert_eq!(ended.code(), Some(2), "{args:?}: {ended:?}");
        assert!(!ended.stderr.is_empty() && ended.stdout.is_empty(), "{args:?}: {ended:?}");
    }
    println!("{} wrong usages", wrong.len());
}

#[test]
fn a_topic_name_that_kafka_does_not_allow() {
    let dir = private_dir();
    let command = common::pipe(&nowhere(), "no spaces", dir.path());
    common::assert_refused(&common::run(command, b"x\n", LIMIT), 1, &["no spaces", "249"]);
}

#[test]
fn live_lines_first_without_a_backlog_beside_them() {
    let dir = private_dir();
    let mut command = common::pipe(&nowhere(), "t", dir.path());
    command.args(["--order", "live", "--loss-window-ms", "0"]);
    common::assert_refused(&common::run(command, b"x\n", LIMIT), 1, &["order", "loss_window 0"]);
}

#[test]
fn a_window_out_of_range() {
    let dir = private_dir();
    let mut command = common::pipe(&nowhere(), "t", dir.path());
    command.args(["--loss-window-ms", "3"]);
    common::assert_refused(&common::run(command, b"x\n", LIMIT), 1, &["loss_window", "allowed"]);
}

#[test]
fn a_property_that_the_pipeline_owns_or_that_nobody_knows() {
    for (name, value) in [("enable.idempotence", "false"), ("no.such.property", "1")] {
        let dir = private_dir();
        let mut command = common::pipe(&nowhere(), "t", dir.path());
        command.arg("-X").arg(format!("{name}={value}"));
        common::assert_refused(&common::run(command, b"x\n", LIMIT), 1, &[name]);
    }
}

#[test]
fn a_directory_that_can_not_be_made_or_written() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let under_a_file = file.path().join("wal");
    let command = common::pipe(&nowhere(), "t", &under_a_file);
    let name = under_a_file.display().to_string();
    common::assert_refused(&common::run(command, b"x\n", LIMIT), 1, &[&name]);

    // Not even root can write there.
    let command = common::pipe(&nowhere(), "t", "/proc/forebay".as_ref());
    common::assert_refused(&common::run(command, b"x\n", LIMIT), 1, &["/proc/forebay"]);
}

#[test]
fn a_directory_that_others_can_read() {
    let dir = private_dir();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let command = common::pipe(&nowhere(), "t", dir.path());
    let mend = format!("chmod 700 {}", dir.path().display());
    common::assert_refused(&common::run(command, b"x\n", LIMIT), 1, &[&mend]);
}

#[test]
fn a_directory_that_another_process_holds() {
    let dir = private_dir();
    let brokers = nowhere();
    let first = Running::start(common::pipe(&brokers, "t", dir.path())).unwrap();
    common::until_held(dir.path(), &first);
    let second = common::run(common::pipe(&brokers, "t", dir.path()), b"x\n", LIMIT);
    let pid = first.id().to_string();
    common::assert_refused(&second, 1, &[&dir.path().display().to_string(), &pid]);

    // A killed process holds nothing.
    first.kill();
    let _ = first.wait(LIMIT);
    let third = Running::start(common::pipe(&brokers, "t", dir.path())).unwrap();
    common::until_held(dir.path(), &third);
    third.terminate();
    let third = third.wait(LIMIT);
    assert_eq!(third.code(), Some(0), "{third:?}");
    common::closing(&third);
}

/// The end of input and a signal at the same moment: the run is ended, and reported, once.
#[test]
fn a_signal_at_the_end_of_input() {
    let brokers = nowhere();
    let (mut by_input, mut by_signal) = (0, 0);
    for round in 0..60 {
        let mut command = common::forebay();
        command.args(["pipe", "--brokers", &brokers, "--topic", "t", "--json", "--at-most-once"]);
        let mut running = Running::start(command).unwrap();
        // Its handlers are there once it runs with all of its threads.
        let threads = format!("/proc/{}/task", running.id());
        let start = Instant::now();
        while std::fs::read_dir(&threads).map_or(0, Iterator::count) < 4 {
            assert!(start.elapsed() < LIMIT, "it doesn't come up");
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(running.take_stdin());
        std::thread::sleep(Duration::from_micros(round * 100));
        if running.has_ended() {
            by_input += 1;
        } else {
            running.terminate();
            by_signal += 1;
        }
        let ended = running.wait(LIMIT);
        match ended.code() {
            Some(0) => drop(common::closing(&ended)),
            // The signal came before its handler or after all was told.
            _ => panic!("round {round}: {ended:?}"),
        }
    }
    say(&format!(
        "pipe: {by_signal} of 60 ends of input met a signal, {by_input} were over before it"
    ));
    assert!(by_signal > 0);
}

/// On a file system of its own, in a mount namespace that ends with the process.
#[test]
fn a_disk_that_is_full_at_open() {
    let mut probe = Command::new("unshare");
    probe.args(["-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]);
    if !probe.output().is_ok_and(|out| out.status.success()) {
        say("SKIPPED a_disk_that_is_full_at_open: no mount namespace for this user");
        return;
    }
    let dir = private_dir();
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c"]);
    command.arg("mount -t tmpfs -o size=200k,mode=700 tmpfs \"$0\" && exec \"$@\"");
    command.arg(dir.path());
    let pipe = common::pipe(&nowhere(), "t", dir.path());
    command.arg(pipe.get_program()).args(pipe.get_args());
    let ended = common::run(command, b"x\n", LIMIT);
    let name = dir.path().display().to_string();
    common::assert_refused(&ended, 1, &[&name, "No space left"]);
}
