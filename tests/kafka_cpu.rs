//! What our threads cost while brokers are healthy, frozen, slow or gone: one pipeline, one rate. And
//! while nothing is sent.
//! The figures are printed and not judged.
#![cfg(feature = "kafka")]

mod scenes_common;

use forebay::Pipeline;
use forebay_testkit::{Cluster, Trouble, heavy, private_dir, process, say, until};
use scenes_common::{Scene, Stage, common, is_client, play, still};
use std::time::{Duration, Instant};

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

#[test]
fn idle_on_three_brokers() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    let name = cluster.topic("idle", common::PARTITIONS, &[]);
    let dir = private_dir();
    let builder = Pipeline::builder().brokers(cluster.brokers()).wal_dir(dir.path());
    let pipeline = builder.open().expect("it opens");
    let topic = pipeline.topic(&name).expect("a good name");
    topic.send(b"x").expect("there is room");
    common::flush(&pipeline);
    // What follows a first record is over.
    std::thread::sleep(Duration::from_secs(1));
    let figures = || process::threads(is_client);
    let (before, began) = (figures(), Instant::now());
    std::thread::sleep(2 * EACH);
    let (after, s) = (figures(), began.elapsed().as_secs_f64());
    let wakes = |ours: bool| -> f64 {
        let of = |all: &[process::ThreadFigures]| -> u64 {
            let some = all.iter().filter(|t| t.name.starts_with("forebay") == ours);
            some.map(|t| t.switches).sum()
        };
        of(&after).saturating_sub(of(&before)) as f64 / s
    };
    let cpu = |all: &[process::ThreadFigures]| all.iter().map(|t| t.cpu).sum::<Duration>();
    let cores = cpu(&after).saturating_sub(cpu(&before)).as_secs_f64() / s;
    say(&format!(
        "idle on three brokers: {:.2} % of a core; our threads wake {:.0} times a second, \
         librdkafka's {} {:.0}",
        cores * 100.0,
        wakes(true),
        after.iter().filter(|t| t.name.starts_with("rdk:")).count(),
        wakes(false)
    ));
    assert!(pipeline.close(Duration::from_secs(60)).expect("it closes").complete);
}
