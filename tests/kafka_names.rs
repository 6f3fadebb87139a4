//! Brokers by name: the name stops resolving and comes back, or stands for another address.
#![cfg(feature = "kafka")]

mod scenes_common;

use forebay_testkit::{Cluster, ClusterOptions, Hosts, Trouble, heavy, until};
use scenes_common::{Scene, Stage, play};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// All three names stand for this address, or for none.
fn name_all(hosts: &Hosts, cluster: &Cluster, address: Option<Ipv4Addr>) {
    let names: Vec<String> = cluster.ids().into_iter().map(Cluster::host).collect();
    let names = names.iter().map(String::as_str);
    hosts.set(&names.filter_map(|name| Some((name, address?))).collect::<Vec<_>>());
    for id in cluster.ids() {
        let found = (Cluster::host(id).as_str(), 1).to_socket_addrs();
        let found = found.map_or(Vec::new(), |all| all.map(|a| a.ip()).collect());
        assert_eq!(found, address.into_iter().collect::<Vec<_>>(), "the name of node {id}");
    }
}

fn sum(stage: &Stage<'_>, what: impl Fn(&forebay_testkit::Proxy) -> u64) -> u64 {
    stage.cluster.ids().into_iter().map(|id| what(stage.cluster.proxy(id))).sum()
}

fn is_open(address: Ipv4Addr, port: u16) -> bool {
    let at = SocketAddr::from((address, port));
    TcpStream::connect_timeout(&at, Duration::from_secs(60)).is_ok()
}

/// Whether the first node's proxy is at this address; our own knock is counted when this returns.
fn knock(stage: &Stage<'_>, address: Ipv4Addr) -> bool {
    let proxy = stage.cluster.proxy(1);
    let before = proxy.connections();
    let open = is_open(address, proxy.port());
    if open {
        until(Duration::from_secs(60), "the knock is heard", || proxy.connections() > before);
    }
    open
}

fn scenes() {
    let _heavy = heavy();
    let options = ClusterOptions { named: true, ..Default::default() };
    let Some(mut cluster) = Cluster::start_with(options) else { return };
    // From here on this thread, and what it starts, has names of its own.
    let Some(hosts) = Hosts::own() else { return };
    name_all(&hosts, &cluster, Some(HOME));
    play(&mut cluster, Scene::new("brokers by name (control)").proxied(), |stage| {
        stage.hold(Duration::from_secs(1));
        format!("{} connections", sum(stage, |p| p.connections()))
    });

    play(&mut cluster, Scene::new("names gone for 5 s").proxied(), |stage| {
        name_all(&hosts, stage.cluster, None);
        stage.cluster.trouble_everywhere(Trouble::Refuse);
        // Longer than an address is remembered.
        std::thread::sleep(Duration::from_millis(2_500));
        stage.cluster.trouble_everywhere(Trouble::None);
        // The brokers are there for whoever knows where.
        assert!(knock(stage, HOME));
        let before = (sum(stage, |p| p.connections()), sum(stage, |p| p.passed_bytes()));
        stage.hold(Duration::from_secs(5));
        stage.until_spilled();
        let after = (sum(stage, |p| p.connections()), sum(stage, |p| p.passed_bytes()));
        assert_eq!(after, before, "somebody found the brokers");
        let why = stage.pipeline.stats().states.disconnected;
        assert!(why.is_some(), "{:?}", stage.pipeline.stats());
        name_all(&hosts, stage.cluster, Some(HOME));
        let first = stage.until_delivered();
        format!("disconnected: {why:?}; named again, the first report {first:.1?} later")
    });

    play(&mut cluster, Scene::new("names stand for another address").proxied(), |stage| {
        for id in stage.cluster.ids() {
            stage.cluster.proxy(id).move_to(ELSEWHERE);
        }
        assert!(!knock(stage, HOME) && knock(stage, ELSEWHERE), "they didn't move");
        let before = sum(stage, |p| p.connections());
        stage.until_spilled();
        name_all(&hosts, stage.cluster, Some(ELSEWHERE));
        let first = stage.until_delivered();
        stage.hold(Duration::from_secs(2));
        let connections = sum(stage, |p| p.connections()) - before;
        assert!(connections > 0, "the brokers were not found at the new address");
        format!("{connections} connections there, the first report {first:.1?} after the names")
    });
}

/// On a thread of its own, since the names are a thread's.
#[test]
fn names_that_vanish_and_move() {
    let name = std::thread::current().name().unwrap_or("names").to_owned();
    let scenes = std::thread::Builder::new().name(name).spawn(scenes).expect("a thread");
    scenes.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
