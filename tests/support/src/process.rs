//! Owns child processes: they die with the test, however it ends.

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, set_parent_process_death_signal};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Job = Box<dyn FnOnce() + Send>;

/// Starts a process that the kernel kills when this process ends, even by SIGKILL.
///
/// The kernel ties that to the *thread* that started the child, and a test's thread ends with
/// its test; so one thread, which never ends, starts them all.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        std::thread::spawn(move || queue.into_iter().for_each(|job| job()));
        Mutex::new(jobs)
    });
    let parent = rustix::process::getpid();
    // SAFETY: the closure makes two system calls and touches no memory but its own copy of
    // `parent`; both are safe between fork and exec.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // It may have ended between the fork and the call above.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::Error::other("the test ended"));
            }
            Ok(())
        });
    }
    let (answer, result) = channel();
    let job: Job = Box::new(move || {
        let _ = answer.send(command.spawn());
    });
    spawner
        .lock()
        .map_err(|_| io::Error::other("the spawner's lock is poisoned"))?
        .send(job)
        .map_err(|_| io::Error::other("the spawner ended"))?;
    result.recv().map_err(io::Error::other)?
}

/// Sends a signal to a child that has not been waited for.
pub fn signal(child: &Child, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.ok_or_else(|| io::Error::other("no such process number"))?, signal)?;
    Ok(())
}

/// What a thread of this process has done so far.
#[derive(Clone, Debug)]
pub struct ThreadFigures {
    /// Its name, at most 15 bytes of it.
    pub name: String,
    /// How often it gave its core up: each time it wakes again.
    pub switches: u64,
    /// User and system time.
    pub cpu: Duration,
}

/// What each thread of this process has done whose name is wanted. One that ended is forgotten.
pub fn threads(is_wanted: impl Fn(&str) -> bool) -> Vec<ThreadFigures> {
    let mut threads = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let name = read("comm").trim().to_owned();
        if is_wanted(&name) {
            let switches = number(&read("status"), "voluntary_ctxt_switches:").unwrap_or(0);
            let ran_ns = read("schedstat").split(' ').next().and_then(|n| n.parse().ok());
            let cpu = Duration::from_nanos(ran_ns.unwrap_or(0));
            threads.push(ThreadFigures { name, switches, cpu });
        }
    }
    threads
}

/// The number behind `name` at the beginning of a line, as in `/proc/self/status`.
pub fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
}

/// The CPU time that a process has used, all its threads together, user and system.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let fields = stat(pid)?;
    let ticks: u64 = [fields.get(11), fields.get(12)]
        .into_iter()
        .map(|f| f.and_then(|f| f.parse::<u64>().ok()).unwrap_or(0))
        .sum();
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

/// The CPU time that this process has used.
#[must_use]
pub fn own_cpu_time() -> Duration {
    cpu_time(std::process::id()).unwrap_or_default()
}

/// Minor and major page faults of the calling thread so far.
#[must_use]
pub fn page_faults() -> u64 {
    // SAFETY: a zeroed `rusage` is one, and the call fills it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
        usage
    };
    (usage.ru_minflt + usage.ru_majflt) as u64
}

/// The state letter of a process: `T` is stopped by a signal.
pub fn state(pid: u32) -> io::Result<char> {
    let fields = stat(pid)?;
    fields.first().and_then(|f| f.chars().next()).ok_or_else(|| io::Error::other("no state"))
}

/// Whether every thread of a process is stopped by a signal.
pub fn is_stopped(pid: u32) -> io::Result<bool> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = task?.path().join("stat");
        // One that has ended since the directory was read is none.
        let Ok(fields) = stat_in(&stat) else { continue };
        if fields.first().is_none_or(|state| state != "T") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The fields of `/proc/PID/stat` from the state on.
fn stat(pid: u32) -> io::Result<Vec<String>> {
    stat_in(format!("/proc/{pid}/stat").as_ref())
}

/// The fields behind the name, which may hold anything.
fn stat_in(file: &Path) -> io::Result<Vec<String>> {
    let text = std::fs::read_to_string(file)?;
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(rest.split_whitespace().map(str::to_owned).collect())
}

/// How a finished process ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// All it wrote to standard output.
    pub stdout: String,
    /// All it wrote to standard error.
    pub stderr: String,
}

impl Ended {
    /// Its exit code; `None` when a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The one JSON object on its standard output.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.stdout.trim()).unwrap_or_else(|error| {
            panic!("not one JSON object on standard output ({error}): {self:?}")
        })
    }
}

/// A running command whose output is collected; dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
}

impl Running {
    /// Starts `command` with a pipe on each of its three standard streams.
    pub fn start(mut command: Command) -> io::Result<Running> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(command)?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Ok(Running { child, stdin, stdout, stderr })
    }

    /// Its process number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, once; dropping it is the end of its input.
    pub fn take_stdin(&mut self) -> ChildStdin {
        self.stdin.take().expect("standard input is taken once")
    }

    /// Sends it SIGTERM.
    pub fn terminate(&self) {
        signal(&self.child, Signal::TERM).expect("the process can be signalled");
    }

    /// Sends it SIGINT.
    pub fn interrupt(&self) {
        signal(&self.child, Signal::INT).expect("the process can be signalled");
    }

    /// Sends it SIGKILL.
    pub fn kill(&self) {
        signal(&self.child, Signal::KILL).expect("the process can be signalled");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end; after `limit` it is killed and the test fails with what it printed.
    #[must_use]
    pub fn wait(mut self, limit: Duration) -> Ended {
        drop(self.stdin.take());
        let start = Instant::now();
        let mut late = false;
        let status = loop {
            match self.child.try_wait().expect("a child can be waited for") {
                Some(status) => break status,
                None if start.elapsed() > limit && !late => {
                    late = true;
                    self.kill();
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let text = |stream: Option<JoinHandle<String>>| {
            stream.and_then(|reader| reader.join().ok()).unwrap_or_default()
        };
        let ended =
            Ended { status, stdout: text(self.stdout.take()), stderr: text(self.stderr.take()) };
        assert!(!late, "still running after {limit:?}, killed: {ended:?}");
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
