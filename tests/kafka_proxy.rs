//! Three brokers behind proxies that spoil the connections: refused, hung, dropped, reset, slow, and
//! answers that never come. Nothing is lost, nothing comes twice.
#![cfg(feature = "kafka")]

mod scenes_common;

use forebay_testkit::{Cluster, Trouble, heavy, until};
use scenes_common::{Scene, Stage, left_out, play, still};
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// What a new connection to a broker meets within this time.
fn knock(stage: &Stage<'_>, id: u32, limit: Duration) -> Result<TcpStream, ErrorKind> {
    let address: SocketAddr = stage.cluster.proxy(id).address().parse().unwrap();
    TcpStream::connect_timeout(&address, limit).map_err(|e| e.kind())
}

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(60);

/// What went through all proxies so far.
fn passed(stage: &Stage<'_>) -> u64 {
    stage.cluster.ids().into_iter().map(|id| stage.cluster.proxy(id).passed_bytes()).sum()
}

fn sum(stage: &Stage<'_>, what: impl Fn(&forebay_testkit::Proxy) -> u64) -> u64 {
    stage.cluster.ids().into_iter().map(|id| what(stage.cluster.proxy(id))).sum()
}

/// The same trouble in front of all brokers for a while, while nothing may go through; then how
/// soon the first report comes.
fn cut_off(stage: &mut Stage<'_>, trouble: Trouble, time: Duration) -> String {
    stage.cluster.trouble_everywhere(trouble);
    let before = still(|| passed(stage));
    stage.hold(time);
    assert_eq!(passed(stage), before, "something went through");
    stage.until_spilled();
    let delivered = stage.pipeline.stats().books.delivered;
    let ended = Instant::now();
    stage.cluster.trouble_everywhere(Trouble::None);
    let first = stage.until_delivered();
    // A connection that was there all along is none that was accepted.
    let ids = stage.cluster.ids();
    let connected = ids.iter().filter_map(|id| stage.cluster.proxy(*id).last_connected());
    let connected = connected.filter(|at| *at > ended).min();
    let connected =
        connected.map_or("none".to_owned(), |at| format!("{:.1?}", at.duration_since(ended)));
    format!(
        "{delivered} delivered at the end of the fault; after it the first new connection \
         {connected}, the first report {first:.1?}"
    )
}

#[test]
fn brokers_that_refuse() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    play(&mut cluster, Scene::new("brokers refuse 4 s").proxied(), |stage| {
        stage.cluster.trouble_everywhere(Trouble::Refuse);
        assert_eq!(knock(stage, 1, LIMIT).err(), Some(ErrorKind::ConnectionRefused));
        cut_off(stage, Trouble::Refuse, Duration::from_secs(4))
    });
}

#[test]
fn brokers_that_hang() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    play(&mut cluster, Scene::new("brokers hang 8 s").proxied(), |stage| {
        stage.cluster.trouble_everywhere(Trouble::Hang);
        // Half open: the connection is there, and no answer on it.
        let mut open = knock(stage, 1, LIMIT).expect("it is accepted");
        open.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let silence = open.read(&mut [0; 1]).unwrap_err().kind();
        assert!(matches!(silence, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence:?}");
        cut_off(stage, Trouble::Hang, Duration::from_secs(8))
    });
}

#[test]
fn brokers_whose_packets_are_dropped() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    play(&mut cluster, Scene::new("packets dropped 8 s").proxied(), |stage| {
        stage.cluster.trouble_everywhere(Trouble::Drop);
        let answer = knock(stage, 1, Duration::from_millis(500)).err();
        assert_eq!(answer, Some(ErrorKind::TimedOut), "there was an answer");
        cut_off(stage, Trouble::Drop, Duration::from_secs(8))
    });
}

#[test]
fn answers_that_never_come() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    play(&mut cluster, Scene::new("answers swallowed 4 s").proxied(), |stage| {
        let id = stage.cluster.leader(stage.topic, 0).expect("a leader");
        stage.cluster.proxy(id).make(Trouble::SwallowAnswers);
        let log_bytes = stage.cluster.log_bytes(id, stage.topic);
        stage.hold(Duration::from_secs(4));
        let swallowed = |stage: &Stage<'_>| stage.cluster.proxy(id).swallowed_bytes();
        let appended = |stage: &Stage<'_>| stage.cluster.log_bytes(id, stage.topic) - log_bytes;
        until(LIMIT, "it appends, and its answers are swallowed", || {
            swallowed(stage) > 0 && appended(stage) > 0
        });
        let (swallowed, appended) = (swallowed(stage), appended(stage));
        stage.cluster.trouble_everywhere(Trouble::None);
        let first = stage.until_delivered();
        format!(
            "node {id} appended {appended} bytes, {swallowed} bytes of answers were swallowed, the \
             next report {first:.1?} after it"
        )
    });
}

#[test]
fn connections_that_are_reset() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    play(&mut cluster, Scene::new("connections reset for 4 s").proxied(), |stage| {
        let before = sum(stage, |p| p.resets());
        stage.cluster.trouble_everywhere(Trouble::Reset(Duration::from_millis(300)));
        stage.hold(Duration::from_secs(4));
        stage.cluster.trouble_everywhere(Trouble::None);
        let resets = sum(stage, |p| p.resets()) - before;
        assert!(resets > 0, "no connection was reset");
        let first = stage.until_delivered();
        format!("{resets} connections reset at 300 ms of age, the next report {first:.1?} after it")
    });
}

#[test]
fn answers_that_come_late() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    if left_out("latency 100 ms") {
        return;
    }
    play(&mut cluster, Scene::new("latency 100 ms").proxied(), |stage| {
        let late = Duration::from_millis(100);
        stage.cluster.trouble_everywhere(Trouble::Latency(late));
        let took = stage.send_tracked();
        assert!(took >= late, "{took:?}");
        stage.hold(Duration::from_secs(5));
        stage.cluster.trouble_everywhere(Trouble::None);
        format!("a record took {took:.1?}")
    });
}

#[test]
fn a_narrow_way() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    if left_out("300 KB/s") {
        return;
    }
    play(&mut cluster, Scene::new("300 KB/s").proxied(), |stage| {
        stage.cluster.trouble_everywhere(Trouble::Bandwidth(300_000));
        stage.until_spilled();
        let (start, before) = (Instant::now(), passed(stage));
        stage.hold(Duration::from_secs(8));
        let passed = passed(stage) - before;
        stage.cluster.trouble_everywhere(Trouble::None);
        // Three brokers, two directions, and what the proxies hold.
        assert!(passed as f64 <= start.elapsed().as_secs_f64() * 6.0 * 300_000.0 + 6e6);
        format!("{passed} bytes went through in 8 s")
    });
}
