//! Owns `target/kafka/`: the jars, the compiled oracle and the class archives, made once and
//! shared by every test process; and the directories of the brokers that run.

use crate::broker::{Kafka, KafkaOptions};
use crate::say;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

const POM: &str = include_str!("../java/pom.xml");
const LOG4J: &str = include_str!("../java/log4j2.properties");
const ORACLE: &str = include_str!("../java/Oracle.java");

/// The broker's comes first: where it is, both were tried.
const ARCHIVES: [&str; 2] = ["broker.jsa", "oracle.jsa"];

/// What is needed to run Kafka, ready on disk.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    root: PathBuf,
    jars: String,
}

/// The home, or why there is none. Asked once a process.
pub(crate) fn home() -> Result<&'static Home, &'static str> {
    static HOME: OnceLock<Result<Home, String>> = OnceLock::new();
    HOME.get_or_init(prepare).as_ref().map_err(String::as_str)
}

/// Says why `what` cannot be had; fails where Kafka is required.
pub(crate) fn skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        !is_required(),
        "FOREBAY_REQUIRE_KAFKA=1, but {test} can't have a real Kafka: {reason}"
    );
    say(&format!("SKIPPED {test}: no real Kafka here: {reason}"));
}

pub(crate) fn is_required() -> bool {
    std::env::var("FOREBAY_REQUIRE_KAFKA").is_ok_and(|v| !v.is_empty() && v != "0")
}

impl Home {
    /// A `java` command with the flags that make a small broker start fast.
    ///
    /// `archive` names a class archive; the classpath must be the same when it is used as when
    /// it was made.
    pub(crate) fn java(&self, archive: &str) -> Command {
        let mut java = self.bare_java();
        let file = self.root.join(archive);
        if file.exists() {
            java.arg("-Xshare:auto").arg(format!("-XX:SharedArchiveFile={}", file.display()));
        }
        java
    }

    /// The same, but writing the archive when the process ends.
    fn java_archiving(&self, archive: &str) -> Command {
        let mut java = self.bare_java();
        let file = self.root.join(format!("{archive}.new"));
        java.arg(format!("-XX:ArchiveClassesAtExit={}", file.display()));
        java
    }

    fn bare_java(&self) -> Command {
        let mut java = Command::new("java");
        java.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xss512k", "-Xms32m"]);
        java.arg(format!(
            "-Dlog4j2.configurationFile={}",
            self.root.join("log4j2.properties").display()
        ));
        java.arg("-cp").arg(&self.jars).stdin(Stdio::null());
        java
    }

    /// A new empty directory for what one broker or one oracle writes.
    pub(crate) fn run_dir(&self) -> io::Result<PathBuf> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let run = self.root.join("run");
        fs::create_dir_all(&run)?;
        sweep(&run);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = run.join(format!("{}-{n}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

/// Removes what test processes left behind that were killed before they could.
fn sweep(run: &Path) {
    for entry in fs::read_dir(run).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// `target/kafka`, in the target directory that this test was built into.
fn root() -> io::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    // Cargo marks its target directories with this file.
    let target = exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        Path::to_path_buf,
    );
    let root = target.join("kafka");
    fs::create_dir_all(&root)?;
    root.canonicalize()
}

/// Opens a file under `target/kafka` and waits for the only lock on it.
pub(crate) fn lock_file(name: &str) -> io::Result<File> {
    let file = File::options().create(true).append(true).open(root()?.join(name))?;
    file.lock()?;
    Ok(file)
}

fn prepare() -> Result<Home, String> {
    java_version()?;
    let root = root().map_err(|e| format!("target/kafka can't be made: {e}"))?;
    let _lock = lock_file("prepare.lock").map_err(|e| format!("target/kafka/prepare.lock: {e}"))?;
    let io = |e: io::Error| format!("target/kafka: {e}");
    if !is_current(&root, "lib", POM) {
        fetch_jars(&root)?;
    }
    let mut jars: Vec<String> = fs::read_dir(root.join("lib"))
        .map_err(io)?
        .flatten()
        .map(|e| e.path().display().to_string())
        .filter(|p| p.ends_with(".jar"))
        .collect();
    // The class archive wants the same order of jars at every start.
    jars.sort();
    jars.push(root.join("oracle").join("oracle.jar").display().to_string());
    let home = Home { root, jars: jars.join(":") };
    fs::write(home.root.join("log4j2.properties"), LOG4J).map_err(io)?;
    if !is_current(&home.root, "oracle", ORACLE) {
        compile_oracle(&home)?;
    }
    if !home.root.join("broker.jsa").exists() {
        make_archives(&home).unwrap_or_else(|e| say(&format!("no class archive: {e}")));
    }
    Ok(home)
}

fn java_version() -> Result<(), String> {
    let out = Command::new("java")
        .arg("-version")
        .output()
        .map_err(|e| format!("java (17 or later) is not installed: {e}"))?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let version = text.split('"').nth(1).unwrap_or("").to_owned();
    let major: u32 = version.split(['.', '-']).next().and_then(|n| n.parse().ok()).unwrap_or(0);
    if major >= 17 { Ok(()) } else { Err(format!("java is {version:?}, Kafka needs 17 or later")) }
}

/// Whether `part` was made from `source`: a stamp beside it holds what it was made from.
fn is_current(root: &Path, part: &str, source: &str) -> bool {
    root.join(part).is_dir()
        && fs::read_to_string(root.join(format!("{part}.stamp"))).is_ok_and(|s| s == source)
}

/// Puts what was made in `part.new` in place. The archives depend on both parts: they go.
fn put_in_place(root: &Path, part: &str, source: &str) -> io::Result<()> {
    let _ = fs::remove_file(root.join(format!("{part}.stamp")));
    let _ = fs::remove_dir_all(root.join(part));
    for archive in ARCHIVES {
        let _ = fs::remove_file(root.join(archive));
    }
    fs::rename(root.join(format!("{part}.new")), root.join(part))?;
    fs::write(root.join(format!("{part}.stamp")), source)
}

fn fetch_jars(root: &Path) -> Result<(), String> {
    let io = |e: io::Error| format!("target/kafka: {e}");
    say("fetching Apache Kafka with Maven into target/kafka/lib (once)");
    let fresh = root.join("lib.new");
    let _ = fs::remove_dir_all(&fresh);
    fs::write(root.join("pom.xml"), POM).map_err(io)?;
    let out = Command::new("mvn")
        .args(["-q", "-B", "dependency:copy-dependencies"])
        .arg(format!("-DoutputDirectory={}", fresh.display()))
        .current_dir(root)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("mvn (Maven) is not installed: {e}"))?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let line = text.lines().find(|l| l.contains("ERROR")).unwrap_or("it says nothing");
        return Err(format!("Maven could not fetch Apache Kafka: {line}"));
    }
    put_in_place(root, "lib", POM).map_err(io)
}

fn compile_oracle(home: &Home) -> Result<(), String> {
    let io = |e: io::Error| format!("target/kafka: {e}");
    let fresh = home.root.join("oracle.new");
    let _ = fs::remove_dir_all(&fresh);
    let classes = fresh.join("classes");
    fs::create_dir_all(&classes).map_err(io)?;
    let source = fresh.join("Oracle.java");
    fs::write(&source, ORACLE).map_err(io)?;
    let mut javac = Command::new("javac");
    javac.args(["-nowarn", "-cp", &home.jars, "-d"]).arg(&classes).arg(&source);
    jdk_tool(javac)?;
    // A jar, since a class archive takes nothing from directories.
    let mut jar = Command::new("jar");
    jar.arg("cf").arg(fresh.join("oracle.jar")).arg("-C").arg(&classes).arg(".");
    jdk_tool(jar)?;
    put_in_place(&home.root, "oracle", ORACLE).map_err(io)
}

fn jdk_tool(mut command: Command) -> Result<(), String> {
    let name = command.get_program().display().to_string();
    let out = command
        .output()
        .map_err(|e| format!("{name} (a JDK, not only a JRE) is not installed: {e}"))?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&out.stderr)))
}

/// Runs one broker and one oracle that leave class archives behind: a start takes half as long
/// with them.
fn make_archives(home: &Home) -> Result<(), String> {
    let (broker, oracle) = (home.java_archiving("broker.jsa"), home.java_archiving("oracle.jsa"));
    let mut kafka = Kafka::start_with(home, &KafkaOptions::default(), broker, oracle)?;
    kafka.oracle().create_topic("warm-up", 1, &[])?;
    kafka.oracle().produce("warm-up", None, None, Some(b"k"), Some(b"v"), &[("h", Some(b"x"))])?;
    kafka.oracle().read("warm-up")?;
    kafka.oracle().end();
    kafka.stop();
    for archive in ARCHIVES {
        let fresh = home.root.join(format!("{archive}.new"));
        fs::rename(&fresh, home.root.join(archive)).map_err(|e| format!("{archive}: {e}"))?;
    }
    Ok(())
}
