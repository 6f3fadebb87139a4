//! Owns a cluster of three real brokers: each fails alone, and has a proxy in front of it.
//!
//! Three combined nodes, replication 3, `min.insync.replicas` 2. Their timeouts are a tenth of
//! Kafka's defaults: a dead broker is noticed within a second.

use crate::broker::{self, Node};
use crate::disk::Disk;
use crate::home::{self, Home};
use crate::oracle::{Leader, Oracle};
use crate::proxy::{Proxy, Trouble};
use crate::{Random, process};
use rustix::process::Signal;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

/// How many nodes: 1, 2 and 3.
const NODES: u32 = 3;
/// How long the cluster may take to be whole again.
const WHOLE_LIMIT: Duration = Duration::from_secs(120);

/// What differs from three plain brokers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClusterOptions {
    /// Clients that come through the proxies are told to come back by name: [`Cluster::host`].
    pub named: bool,
    /// Each node's data lies on a disk of its own, of so many MiB.
    pub disk_mebibytes: Option<u64>,
}

/// Three brokers; dropped, they are killed.
#[derive(Debug)]
pub struct Cluster {
    oracle: Oracle,
    dir: PathBuf,
    members: Vec<Member>,
    random: Random,
}

#[derive(Debug)]
struct Member {
    id: u32,
    node: Node,
    dir: PathBuf,
    ports: Ports,
    voters: String,
    proxy: Proxy,
    /// `host:port` of the proxy, as clients are told.
    advertised: String,
    disk: Option<Disk>,
    paused: bool,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    /// For brokers among themselves, and for clients that need no proxy.
    plain: u16,
    /// Behind the proxy.
    behind: u16,
    controller: u16,
}

impl Cluster {
    /// Starts a cluster. `None`, said loudly, where there is no Kafka to be had.
    ///
    /// # Panics
    /// When Kafka is there, or required, and doesn't start.
    #[must_use]
    pub fn start() -> Option<Cluster> {
        Cluster::start_with(ClusterOptions::default())
    }

    /// The same with options. `None`, said loudly, also where disks can't be mounted.
    ///
    /// # Panics
    /// When Kafka is there, or required, and doesn't start.
    #[must_use]
    pub fn start_with(options: ClusterOptions) -> Option<Cluster> {
        let home = match home::home() {
            Ok(home) => home,
            Err(reason) => {
                home::skip(reason);
                return None;
            }
        };
        let mut last = String::new();
        // Another process may take the ports between the look and the start.
        for _ in 0..3 {
            match start(home, options) {
                Ok(cluster) => return cluster,
                Err(reason) => last = reason,
            }
        }
        panic!("the cluster did not start: {last}");
    }

    /// One cluster for all tests of this process, who take turns; each gets it whole. It ends
    /// with the process.
    #[must_use]
    pub fn shared() -> Option<MutexGuard<'static, Cluster>> {
        static SHARED: OnceLock<Option<Mutex<Cluster>>> = OnceLock::new();
        let Some(shared) = SHARED.get_or_init(|| Cluster::start().map(Mutex::new)) else {
            home::home().map_err(home::skip).err();
            return None;
        };
        // A test that failed says nothing against the cluster: it is mended.
        let mut cluster = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        cluster.heal();
        Some(cluster)
    }

    /// `host:port` of all three, for clients.
    #[must_use]
    pub fn brokers(&self) -> String {
        let all = self.members.iter().map(|m| format!("127.0.0.1:{}", m.ports.plain));
        all.collect::<Vec<_>>().join(",")
    }

    /// The same through the proxies: such a client never meets the brokers themselves.
    #[must_use]
    pub fn proxied(&self) -> String {
        let all = self.members.iter().map(|m| m.advertised.as_str());
        all.collect::<Vec<_>>().join(",")
    }

    /// The name that a node of a named cluster goes by.
    #[must_use]
    pub fn host(id: u32) -> String {
        format!("broker-{id}.forebay.test")
    }

    /// The nodes' numbers.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        (1..=NODES).collect()
    }

    /// Says what is really in this cluster.
    #[must_use]
    pub fn oracle(&self) -> &Oracle {
        &self.oracle
    }

    /// The proxy in front of a node.
    #[must_use]
    pub fn proxy(&self, id: u32) -> &Proxy {
        &self.members[id as usize - 1].proxy
    }

    /// Makes the same trouble at all proxies.
    pub fn trouble_everywhere(&self, trouble: Trouble) {
        self.members.iter().for_each(|m| m.proxy.make(trouble));
    }

    /// A new topic with a name that no other test uses, replicated to all three.
    pub fn topic(&mut self, name: &str, partitions: u32, configs: &[(&str, &str)]) -> String {
        let topic = self.name(name);
        self.oracle.create_topic(&topic, partitions, configs).expect("the topic is made");
        self.wait_until_in_sync(&topic);
        topic
    }

    /// The same, with each partition on the nodes given, the first its leader.
    pub fn topic_on(&mut self, name: &str, replicas: &[&[u32]]) -> String {
        let topic = self.name(name);
        self.oracle.place_topic(&topic, replicas).expect("the topic is made");
        topic
    }

    /// A topic's name that no other test uses.
    pub fn name(&mut self, name: &str) -> String {
        format!("{name}-{:08x}", self.random.number() as u32)
    }

    /// Who leads a partition.
    #[must_use]
    pub fn leader(&self, topic: &str, partition: usize) -> Option<u32> {
        let mut leader = None;
        self.wait_for(topic, |all| {
            leader = all.get(partition).and_then(|p| p.leader);
            true
        });
        leader
    }

    /// The active controller.
    #[must_use]
    pub fn controller(&self) -> u32 {
        self.oracle.controller().expect("the cluster answers")
    }

    /// Waits until the topic's partitions stand as asked.
    ///
    /// # Panics
    /// When they don't within two minutes.
    pub fn wait_for(&self, topic: &str, mut stand: impl FnMut(&[Leader]) -> bool) {
        let start = Instant::now();
        loop {
            let found = self.oracle.leaders(topic);
            if found.as_ref().is_ok_and(|leaders| stand(leaders)) {
                return;
            }
            assert!(start.elapsed() < WHOLE_LIMIT, "{topic}: {found:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until every replica of the topic is in sync and each partition has a leader.
    pub fn wait_until_in_sync(&self, topic: &str) {
        self.wait_for(topic, |all| {
            all.iter().all(|p| p.leader.is_some() && p.in_sync.len() == NODES as usize)
        });
    }

    /// Stops a node where it stands (SIGSTOP): its sockets stay open and silent.
    pub fn pause(&mut self, id: u32) {
        let member = self.member(id);
        member.signal(Signal::STOP);
        broker::wait_until_stopped(member.pid());
        member.paused = true;
    }

    /// Lets a paused node go on (SIGCONT).
    pub fn resume(&mut self, id: u32) {
        let member = self.member(id);
        member.signal(Signal::CONT);
        member.paused = false;
    }

    /// Kills a node (SIGKILL).
    pub fn kill(&mut self, id: u32) {
        let member = self.member(id);
        member.signal(Signal::KILL);
        member.wait_for_end();
    }

    /// Ends a node in good order (SIGTERM): it hands its partitions over first.
    pub fn stop(&mut self, id: u32) {
        let member = self.member(id);
        member.signal(Signal::TERM);
        member.wait_for_end();
    }

    /// Whether the node's process runs, paused or not.
    #[must_use]
    pub fn is_running(&mut self, id: u32) -> bool {
        let child = &mut self.member(id).node.child;
        child.as_mut().is_some_and(|c| matches!(c.try_wait(), Ok(None)))
    }

    /// Starts nodes again, all at once, on the same ports and data; gives the time until the last
    /// of them takes requests.
    ///
    /// # Panics
    /// When one doesn't start.
    pub fn restart(&mut self, ids: &[u32]) -> Duration {
        let start = Instant::now();
        for id in ids {
            self.member(*id).launch().expect("the node starts");
        }
        for id in ids {
            let member = self.member(*id);
            member.node.wait_until_started(&member.dir).expect("the node is ready");
        }
        start.elapsed()
    }

    /// Starts a node again behind the same proxy, but listening there on another port than before.
    ///
    /// The plain port stays: it is how the oracle finds the cluster, and one whose nodes had all
    /// moved, one after another, would be lost to it.
    ///
    /// # Panics
    /// When it doesn't start.
    pub fn restart_elsewhere(&mut self, id: u32) -> Duration {
        let behind = broker::free_ports(&mut self.random, 1).expect("a free port");
        let member = self.member(id);
        member.ports.behind = behind;
        member.proxy.lead_to(behind);
        member.write_properties().expect("the node's settings are written");
        self.restart(&[id])
    }

    /// Takes all the room that is left on a node's disk; gives how much that was.
    pub fn fill_disk(&mut self, id: u32) -> u64 {
        self.member(id).disk.as_ref().expect("a disk of its own").fill()
    }

    /// Gives the room back that was taken.
    pub fn free_disk(&mut self, id: u32) {
        self.member(id).disk.as_ref().expect("a disk of its own").free();
    }

    /// Starts every node again that has ended; says which.
    pub fn restart_ended(&mut self) -> Vec<u32> {
        let mut down = self.ids();
        down.retain(|id| !self.is_running(*id));
        for id in &down {
            self.member(*id).node.child = None;
        }
        self.restart(&down);
        down
    }

    /// The bytes of a topic's log on one node's disk.
    #[must_use]
    pub fn log_bytes(&self, id: u32, topic: &str) -> u64 {
        broker::log_bytes(&self.members[id as usize - 1].dir.join("data"), topic)
    }

    /// A node's process number.
    #[must_use]
    pub fn pid(&self, id: u32) -> u32 {
        self.members[id as usize - 1].pid()
    }

    /// Ends every trouble, starts what is down, and waits until the cluster is whole.
    ///
    /// # Panics
    /// When it doesn't become whole.
    pub fn heal(&mut self) {
        self.trouble_everywhere(Trouble::None);
        for id in self.ids() {
            if self.member(id).paused {
                self.resume(id);
            }
        }
        self.restart_ended();
        let start = Instant::now();
        while self.oracle.nodes().map_or(0, |n| n.len()) < NODES as usize {
            assert!(start.elapsed() < WHOLE_LIMIT, "{:?}", self.oracle.nodes());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn member(&mut self, id: u32) -> &mut Member {
        &mut self.members[id as usize - 1]
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.members.iter_mut().for_each(|m| m.node.end());
        self.members.iter_mut().for_each(|m| m.disk = None);
        broker::leave(&self.dir);
    }
}

impl Member {
    fn pid(&self) -> u32 {
        self.node.child.as_ref().expect("the node runs").id()
    }

    fn signal(&self, signal: Signal) {
        let child = self.node.child.as_ref().expect("the node runs");
        process::signal(child, signal).expect("the node can be signalled");
    }

    fn wait_for_end(&mut self) {
        if let Some(mut child) = self.node.child.take() {
            child.wait().expect("a child can be waited for");
        }
        self.paused = false;
    }

    fn launch(&mut self) -> Result<(), String> {
        assert!(self.node.child.is_none(), "node {} still runs", self.id);
        let java = self.node.home.java("broker.jsa");
        self.node.launch(&self.dir, java)
    }

    fn write_properties(&self) -> Result<(), String> {
        let file = self.dir.join("broker.properties");
        fs::write(&file, self.properties()).map_err(|e| format!("{}: {e}", file.display()))
    }

    fn properties(&self) -> String {
        let (id, voters, proxy) = (self.id, &self.voters, &self.advertised);
        let Ports { plain, behind, controller } = self.ports;
        let data = self.dir.join("data");
        format!(
            "process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
listeners=PLAIN://127.0.0.1:{plain},PROXY://127.0.0.1:{behind},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAIN://127.0.0.1:{plain},PROXY://{proxy}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAIN
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAIN:PLAINTEXT,PROXY:PLAINTEXT
log.dirs={}
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=3
transaction.state.log.num.partitions=1
transaction.state.log.min.isr=2
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
auto.leader.rebalance.enable=false
broker.session.timeout.ms=1000
broker.heartbeat.interval.ms=200
replica.lag.time.max.ms=1500
replica.fetch.wait.max.ms=100
replica.socket.timeout.ms=1500
controller.quorum.election.timeout.ms=400
controller.quorum.fetch.timeout.ms=800
controller.quorum.election.backoff.max.ms=200
controller.quorum.request.timeout.ms=1000
log.cleaner.dedupe.buffer.size=2097152
log.index.size.max.bytes=1048576
num.network.threads=1
num.io.threads=2
background.threads=2
",
            data.display()
        )
    }
}

fn start(home: &Home, options: ClusterOptions) -> Result<Option<Cluster>, String> {
    let dir = home.run_dir().map_err(|e| format!("a directory under target/kafka: {e}"))?;
    let mut random = Random::new(crate::seed());
    let first = broker::free_ports(&mut random, 4 * NODES as u16)?;
    let ports = |id: u32| first + 4 * (id as u16 - 1);
    let cluster_id = broker::cluster_id(&mut random);
    let voters: Vec<String> =
        (1..=NODES).map(|id| format!("{id}@127.0.0.1:{}", ports(id) + 2)).collect();
    let mut members = Vec::new();
    let mut formats = Vec::new();
    for id in 1..=NODES {
        let (plain, dir) = (ports(id), dir.join(format!("node-{id}")));
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let node =
            Node { home: home.clone(), cluster_id: cluster_id.clone(), child: None, starts: 0 };
        let disk = match options.disk_mebibytes.map(|size| Disk::mount(&dir.join("data"), size)) {
            Some(None) => return Ok(None),
            disk => disk.flatten(),
        };
        let proxy = Proxy::start(plain + 3, plain + 1)?;
        let advertised = if options.named {
            format!("{}:{}", Cluster::host(id), proxy.port())
        } else {
            proxy.address()
        };
        let member = Member {
            id,
            node,
            dir: dir.clone(),
            ports: Ports { plain, behind: plain + 1, controller: plain + 2 },
            voters: voters.join(","),
            proxy,
            advertised,
            disk,
            paused: false,
        };
        member.write_properties()?;
        let mut format = home.java("broker.jsa");
        format.arg(format!("-Dkafka.log={}", dir.join("format.log").display()));
        format.args(["kafka.tools.StorageTool", "format", "-t", &cluster_id, "-c"]);
        format.arg(dir.join("broker.properties"));
        format.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        formats.push(process::spawn(format).map_err(|e| format!("java: {e}"))?);
        members.push(member);
    }
    for format in formats {
        let out = format.wait_with_output().map_err(|e| format!("java: {e}"))?;
        if !out.status.success() {
            return Err(format!("format: {}", String::from_utf8_lossy(&out.stderr)));
        }
    }
    for member in &mut members {
        member.launch()?;
    }
    let brokers: Vec<String> =
        members.iter().map(|m| format!("127.0.0.1:{}", m.ports.plain)).collect();
    // The oracle's JVM starts beside the brokers'.
    let oracle = Oracle::start(home.java("oracle.jsa"), &brokers.join(","), &dir)?;
    for member in &mut members {
        member.node.wait_until_started(&member.dir)?;
    }
    let found = oracle.cluster_id()?;
    if found != cluster_id {
        return Err(format!("{} is another cluster: {found}", brokers.join(",")));
    }
    let mut cluster = Cluster { oracle, dir, members, random };
    cluster.heal();
    Ok(Some(cluster))
}
