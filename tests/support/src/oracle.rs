//! Owns the oracle: one Java process beside a cluster that says what is really in it.

use crate::process;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// One record as Kafka's own consumer read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumed {
    /// Its partition.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// Its timestamp, milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Its key; `None` is null.
    pub key: Option<Vec<u8>>,
    /// Its value; `None` is null, a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers, in their order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Consumed {
    /// The value of the first header of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(n, _)| n == name).and_then(|(_, v)| v.as_deref())
    }
}

/// Asks a cluster, through Apache Kafka's own Java client, what is in it.
#[derive(Debug)]
pub struct Oracle {
    talk: Mutex<Option<Talk>>,
    dir: PathBuf,
}

#[derive(Debug)]
struct Talk {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Oracle {
    /// Starts the Java process with `java`; its files go to `dir`.
    pub(crate) fn start(mut java: Command, brokers: &str, dir: &Path) -> Result<Oracle, String> {
        let log = dir.join("oracle.log");
        java.arg("-Xmx256m").arg(format!("-Dkafka.log={}", log.display()));
        java.arg("Oracle").arg(brokers);
        let errors = std::fs::File::create(dir.join("oracle.out")).map_err(|e| e.to_string())?;
        java.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child = process::spawn(java).map_err(|e| format!("java: {e}"))?;
        let input = child.stdin.take().ok_or("no standard input")?;
        let output = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        let talk = Mutex::new(Some(Talk { child, input, output }));
        Ok(Oracle { talk, dir: dir.to_path_buf() })
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> Result<String, String> {
        self.ask(&["cluster"])
    }

    /// Makes a topic and waits until each of its partitions has a leader.
    pub fn create_topic(
        &self,
        topic: &str,
        partitions: u32,
        configs: &[(&str, &str)],
    ) -> Result<(), String> {
        let mut words = vec!["create".to_owned(), topic.to_owned(), partitions.to_string()];
        words.extend(configs.iter().map(|(name, value)| format!("{name}={value}")));
        self.ask(&words).map(drop)
    }

    /// Deletes a topic.
    pub fn delete_topic(&self, topic: &str) -> Result<(), String> {
        self.ask(&["delete", topic]).map(drop)
    }

    /// The end offset of each partition.
    pub fn end_offsets(&self, topic: &str) -> Result<Vec<i64>, String> {
        let answer = self.ask(&["ends", topic])?;
        answer
            .split('\t')
            .map(|n| n.parse().map_err(|_| format!("not offsets: {answer}")))
            .collect()
    }

    /// Produces one record with the Java client and gives its offset.
    pub fn produce(
        &self,
        topic: &str,
        partition: Option<i32>,
        timestamp_ms: Option<i64>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> Result<i64, String> {
        let hex = |bytes: Option<&[u8]>| {
            bytes.map_or("-".to_owned(), |b| b.iter().map(|b| format!("{b:02x}")).collect())
        };
        let mut words = vec!["produce".to_owned(), topic.to_owned()];
        words.push(partition.map_or("-".to_owned(), |p| p.to_string()));
        words.push(timestamp_ms.map_or("-".to_owned(), |t| t.to_string()));
        words.push(hex(key));
        words.push(hex(value));
        words.extend(headers.iter().map(|(name, value)| format!("{name}={}", hex(*value))));
        let answer = self.ask(&words)?;
        answer.parse().map_err(|_| format!("not an offset: {answer}"))
    }

    /// Every record of a topic, from the first to the end of now, by partition and offset.
    pub fn read(&self, topic: &str) -> Result<Vec<Consumed>, String> {
        // Tests of one process share the oracle: each dump has a file of its own.
        static DUMPS: AtomicU64 = AtomicU64::new(0);
        let file = self.dir.join(format!("dump-{}", DUMPS.fetch_add(1, Ordering::Relaxed)));
        let answer = self.ask(&["dump", topic, &file.display().to_string()])?;
        let bytes = std::fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let _ = std::fs::remove_file(&file);
        let mut records = parse(&bytes).ok_or("the dump ends in the middle of a record")?;
        if records.len().to_string() != answer {
            return Err(format!("{answer} records dumped, {} read", records.len()));
        }
        records.sort_unstable_by_key(|r| (r.partition, r.offset));
        Ok(records)
    }

    /// Ends the Java process and waits for it.
    pub(crate) fn end(&self) {
        let Ok(mut talk) = self.talk.lock() else { return };
        if let Some(Talk { mut child, input, output }) = talk.take() {
            drop((input, output));
            let _ = child.wait();
        }
    }

    fn ask(&self, words: &[impl AsRef<str>]) -> Result<String, String> {
        let mut talk = self.talk.lock().map_err(|_| "a test failed while it asked")?;
        let Some(Talk { input, output, .. }) = talk.as_mut() else {
            return Err("the oracle was ended".to_owned());
        };
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        let mut line = words.join("\t");
        line.push('\n');
        input.write_all(line.as_bytes()).map_err(|e| format!("the oracle is gone: {e}"))?;
        input.flush().map_err(|e| format!("the oracle is gone: {e}"))?;
        line.clear();
        output.read_line(&mut line).map_err(|e| format!("the oracle is gone: {e}"))?;
        match line.trim_end_matches('\n').split_once('\t') {
            Some(("ok", answer)) => Ok(answer.to_owned()),
            Some((_, reason)) => Err(format!("{}: {reason}", words[0])),
            None => {
                let errors = std::fs::read_to_string(self.dir.join("oracle.out"));
                Err(format!("the oracle ended: {}", errors.unwrap_or_default()))
            }
        }
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        let talk = self.talk.get_mut().map(Option::take);
        if let Ok(Some(Talk { mut child, .. })) = talk {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads the dump that `Oracle.java` describes; `None` when it is cut short.
fn parse(mut bytes: &[u8]) -> Option<Vec<Consumed>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let partition = int(&mut bytes)?;
        let offset = long(&mut bytes)?;
        let timestamp_ms = long(&mut bytes)?;
        let key = field(&mut bytes)?;
        let value = field(&mut bytes)?;
        let mut headers = Vec::new();
        for _ in 0..int(&mut bytes)? {
            let name = String::from_utf8(field(&mut bytes)??).ok()?;
            headers.push((name, field(&mut bytes)?));
        }
        records.push(Consumed { partition, offset, timestamp_ms, key, value, headers });
    }
    Some(records)
}

fn int(bytes: &mut &[u8]) -> Option<i32> {
    bytes.split_off(..4)?.try_into().ok().map(i32::from_be_bytes)
}

fn long(bytes: &mut &[u8]) -> Option<i64> {
    bytes.split_off(..8)?.try_into().ok().map(i64::from_be_bytes)
}

/// The outer `None` is a cut dump, the inner one a null.
fn field(bytes: &mut &[u8]) -> Option<Option<Vec<u8>>> {
    match usize::try_from(int(bytes)?) {
        Ok(length) => bytes.split_off(..length).map(|b| Some(b.to_vec())),
        Err(_) => Some(None),
    }
}
