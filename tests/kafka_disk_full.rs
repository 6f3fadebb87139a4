//! Brokers whose disks fill up: one, while the others go on; then all three. With room again they
//! come back, and everything arrives.
#![cfg(feature = "kafka")]

mod scenes_common;

use forebay_testkit::{Cluster, ClusterOptions, heavy, until};
use scenes_common::{Scene, Stage, play, still};
use std::time::{Duration, Instant};

/// What one node may have written in the end is a third of it.
const DISK_MEBIBYTES: u64 = 160;
const RECORDS_PER_S: u64 = 10_000;
const LIMIT: Duration = Duration::from_secs(120);

fn ended(stage: &mut Stage<'_>) -> usize {
    let ids = stage.cluster.ids();
    ids.into_iter().filter(|id| !stage.cluster.is_running(*id)).count()
}

#[test]
fn disks_that_fill_up() {
    let _heavy = heavy();
    let options = ClusterOptions { disk_mebibytes: Some(DISK_MEBIBYTES), ..Default::default() };
    let Some(mut cluster) = Cluster::start_with(options) else { return };
    let scene = |name| Scene::new(name).rate(RECORDS_PER_S);
    play(&mut cluster, scene("small disks with room (control)"), |stage| {
        stage.hold(Duration::from_secs(1));
        assert_eq!(ended(stage), 0);
        "none ended".to_owned()
    });

    play(&mut cluster, scene("one disk of three full"), |stage| {
        let id = stage.cluster.leader(stage.topic, 0).expect("a leader");
        let start = Instant::now();
        let bytes = stage.cluster.fill_disk(id);
        until(LIMIT, "the broker gives up", || !stage.cluster.is_running(id));
        let gave_up = start.elapsed();
        stage.cluster.wait_for(stage.topic, |all| {
            all.iter().all(|p| p.leader.is_some_and(|leader| leader != id))
        });
        let first = stage.until_delivered();
        stage.hold(Duration::from_secs(3));
        stage.cluster.free_disk(id);
        assert_eq!(stage.cluster.restart_ended(), [id]);
        stage.cluster.wait_until_in_sync(stage.topic);
        format!(
            "node {id}: the last {bytes} bytes of its disk taken, it ended after {gave_up:.1?}; \
             others lead, the next report {first:.1?} later"
        )
    });

    play(&mut cluster, scene("all three disks full"), |stage| {
        for id in stage.cluster.ids() {
            stage.cluster.fill_disk(id);
        }
        // Two are enough: the third alone is no quorum, and is asked for nothing.
        until(LIMIT, "the brokers give up", || ended(stage) >= 2);
        stage.until_spilled();
        let delivered = still(|| stage.pipeline.stats().books.delivered);
        stage.hold(Duration::from_secs(4));
        assert_eq!(stage.pipeline.stats().books.delivered, delivered, "somebody takes records");
        for id in stage.cluster.ids() {
            stage.cluster.free_disk(id);
        }
        let down = stage.cluster.restart_ended();
        stage.cluster.wait_for(stage.topic, |all| all.iter().all(|p| p.leader.is_some()));
        let first = stage.until_delivered();
        stage.cluster.wait_until_in_sync(stage.topic);
        format!("{down:?} ended; with room and leaders again the first report {first:.1?} later")
    });
}
