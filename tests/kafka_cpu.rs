//! What our threads cost while brokers are healthy, frozen, slow or gone: one pipeline, one rate.
//! The figures are printed and not judged.
#![cfg(feature = "kafka")]

mod scenes_common;

use forebay_testkit::{Cluster, Trouble, heavy, until};
use scenes_common::{Scene, Stage, play, still};
use std::time::Duration;

const EACH: Duration = Duration::from_secs(3);

fn passed(stage: &Stage<'_>) -> u64 {
    stage.cluster.ids().into_iter().map(|id| stage.cluster.proxy(id).passed_bytes()).sum()
}

/// Waits until what the trouble left behind is delivered.
fn recover(stage: &Stage<'_>) {
    stage.cluster.trouble_everywhere(Trouble::None);
    stage.until(|stats| stats.books.in_wal == 0);
    std::thread::sleep(Duration::from_millis(500));
}

#[test]
fn healthy_frozen_slow_and_gone() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    play(&mut cluster, Scene::new("CPU").proxied(), |stage| {
        stage.hold(EACH);
        let healthy = stage.cores;

        for id in stage.cluster.ids() {
            stage.cluster.pause(id);
        }
        stage.until_spilled();
        let before = still(|| stage.pipeline.stats().books.delivered);
        stage.hold(EACH);
        let frozen = stage.cores;
        assert_eq!(stage.pipeline.stats().books.delivered, before, "somebody goes on");
        for id in stage.cluster.ids() {
            stage.cluster.resume(id);
        }
        recover(stage);

        let late = Duration::from_millis(100);
        stage.cluster.trouble_everywhere(Trouble::Latency(late));
        until(Duration::from_secs(60), "answers come late", || stage.send_tracked() >= late);
        stage.hold(EACH);
        let slow = stage.cores;
        recover(stage);

        stage.cluster.trouble_everywhere(Trouble::Refuse);
        let before = still(|| passed(stage));
        stage.hold(EACH);
        let gone = stage.cores;
        assert_eq!(passed(stage), before, "something went through");
        recover(stage);

        stage.hold(EACH);
        format!(
            "cores: healthy {healthy:.3}, frozen {frozen:.3}, slow by 100 ms {slow:.3}, gone \
             {gone:.3}, healthy again {:.3}",
            stage.cores
        )
    });
}
