//! Owns the sink's thread, `forebay-kafka`: everything of librdkafka that blocks.
//!
//! It asks for metadata and makes producers. Destroying one may take seconds, so each is
//! destroyed on a short-lived thread of its own, for which nobody waits.

use super::config::{self, KafkaOptions};
use super::instance::{self, Config, Instance, TopicMetadata};
use crate::error::ConfigError;
use crate::wake::Waker;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::Builder;

/// How long one question for metadata may take.
const METADATA_TIMEOUT_MS: i32 = 1_000;

/// What the thread is asked to do.
pub(super) enum Command {
    Metadata {
        instance: Arc<Instance>,
        generation: u64,
    },
    Build(Role),
    Destroy(Arc<Instance>),
    /// Takes the answers' end away, so that an instance in it is dropped by the thread.
    End(Receiver<Answer>),
}

/// What an instance is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Main,
    /// For the suspects: a refused request costs it nothing.
    Side,
}

/// What an instance of either role is made from.
pub(super) struct Configs {
    pub main: Config,
    pub side: Config,
}

impl Configs {
    /// What the options come to, as far as librdkafka accepts them.
    pub fn new(options: &KafkaOptions) -> Result<Configs, ConfigError> {
        let properties = config::properties(options)?;
        let main = Config::new(&properties)?;
        Ok(Configs { main, side: Config::new(&config::side_properties(&properties))? })
    }
}

/// What it answers. Answers of an older generation are stale.
pub(super) enum Answer {
    Metadata { generation: u64, topics: Result<Vec<TopicMetadata>, i32> },
    Built(Role, Result<Instance, String>),
}

/// The thread is gone: it panicked.
pub(super) struct Lost;

/// The sink's end of the thread.
pub(super) struct Worker {
    configs: Arc<Configs>,
    waker: Waker,
    ends: Option<(Sender<Command>, Receiver<Answer>)>,
}

impl Worker {
    /// Prepares it; the thread starts with the first command.
    pub fn new(configs: Arc<Configs>, waker: Waker) -> Self {
        Worker { configs, waker, ends: None }
    }

    /// What wakes the sink's driver.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Hands a command over. If the thread is gone (it panicked, or the system had no thread to
    /// give), another one is started; false when that fails.
    pub fn send(&mut self, command: Command) -> bool {
        let mut command = command;
        for _ in 0..2 {
            if self.ends.is_none() {
                self.ends = start(&self.configs, &self.waker);
            }
            let Some((commands, _)) = &self.ends else { break };
            match commands.send(command) {
                Ok(()) => return true,
                Err(back) => {
                    self.ends = None;
                    command = back.0;
                }
            }
        }
        if let Command::Destroy(instance) = command {
            destroy(instance);
        }
        false
    }

    /// The next answer, without waiting. `Err` once when the thread is gone, and with it
    /// whatever it was asked and had not answered.
    pub fn answer(&mut self) -> Result<Option<Answer>, Lost> {
        let Some((_, answers)) = &self.ends else { return Ok(None) };
        match answers.try_recv() {
            Ok(answer) => Ok(Some(answer)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => {
                self.ends = None;
                Err(Lost)
            }
        }
    }

    /// Lets the thread end when it has done what it was asked. Doesn't wait for it.
    pub fn end(&mut self) {
        if let Some((commands, answers)) = self.ends.take() {
            let _ = commands.send(Command::End(answers));
        }
    }
}

fn start(configs: &Arc<Configs>, waker: &Waker) -> Option<(Sender<Command>, Receiver<Answer>)> {
    let (commands, inbox) = channel();
    let (outbox, answers) = channel();
    let (configs, waker) = (configs.clone(), waker.clone());
    let run = move || {
        instance::block_signals();
        // A panic ends the thread; the sink sees its answers' end closed and starts another.
        let _ = catch_unwind(AssertUnwindSafe(|| serve(&inbox, &outbox, &configs, &waker)));
        drop((inbox, outbox));
        waker.wake();
    };
    let thread = Builder::new().name("forebay-kafka".to_owned()).spawn(run);
    thread.ok().map(|_| (commands, answers))
}

fn serve(inbox: &Receiver<Command>, outbox: &Sender<Answer>, configs: &Configs, waker: &Waker) {
    while let Ok(command) = inbox.recv() {
        let answer = match command {
            Command::Metadata { instance, generation } => {
                let topics = instance.metadata(METADATA_TIMEOUT_MS);
                // The sink may have given the instance up meanwhile: then this was the last
                // reference to it but the one in `Destroy`, which comes after.
                drop(instance);
                Answer::Metadata { generation, topics }
            }
            Command::Build(role) => {
                let config = match role {
                    Role::Main => &configs.main,
                    Role::Side => &configs.side,
                };
                Answer::Built(role, Instance::new(config, waker.clone()))
            }
            Command::Destroy(instance) => {
                destroy(instance);
                continue;
            }
            Command::End(answers) => {
                drop(answers);
                return;
            }
        };
        // Nobody listens any more when the sink is closed.
        let _ = outbox.send(answer);
        waker.wake();
    }
}

/// Destroys an instance on a thread of its own, or here if the system gives none.
pub(super) fn destroy(instance: Arc<Instance>) {
    let run = move || {
        instance::block_signals();
        drop(instance);
    };
    let _ = Builder::new().name("forebay-reaper".to_owned()).spawn(run);
}
