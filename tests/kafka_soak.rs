//! Faults at random, one after another, from a printed seed: nothing is lost, nothing comes twice.
//!
//! Two minutes; `FOREBAY_SOAK_S` sets another length, `FOREBAY_SEED` the faults.
#![cfg(feature = "kafka")]

mod scenes_common;

use forebay_testkit::{Cluster, Random, Trouble, heavy, say, seed};
use scenes_common::{Scene, Stage, play};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const RECORDS_PER_S: u64 = 4_000;

/// Makes one fault, holds it and ends it; gives its name.
fn fault(stage: &mut Stage<'_>, random: &mut Random) -> &'static str {
    let id = random.within(1, 4) as u32;
    let other = id % 3 + 1;
    let time = Duration::from_millis(random.within(500, 8_000));
    let troubles = [
        (Trouble::Refuse, "refuse"),
        (Trouble::Hang, "hang"),
        (Trouble::Drop, "drop"),
        (Trouble::SwallowAnswers, "swallow answers"),
        (Trouble::Reset(Duration::from_millis(random.within(20, 800))), "reset"),
        (Trouble::Latency(Duration::from_millis(random.within(5, 300))), "latency"),
        (Trouble::Bandwidth(random.within(300_000, 3_000_000)), "bandwidth"),
    ];
    match random.within(0, 12) {
        0 => {
            stage.cluster.kill(id);
            stage.hold(time);
            stage.cluster.restart(&[id]);
            "kill one"
        }
        1 => {
            stage.cluster.stop(id);
            stage.hold(time / 4);
            stage.cluster.restart(&[id]);
            "stop one"
        }
        2 => {
            let ids = stage.cluster.ids();
            ids.iter().for_each(|id| stage.cluster.kill(*id));
            stage.hold(time / 4);
            stage.cluster.restart(&ids);
            "kill all"
        }
        3 => {
            stage.cluster.stop(id);
            stage.cluster.restart_elsewhere(id);
            "other port"
        }
        4 | 5 => {
            stage.cluster.pause(id);
            stage.hold(time);
            stage.cluster.resume(id);
            "freeze one"
        }
        6 => {
            stage.cluster.pause(id);
            stage.cluster.pause(other);
            stage.hold(time);
            stage.cluster.resume(other);
            stage.cluster.resume(id);
            "freeze two"
        }
        _ => {
            let (trouble, name) = troubles[random.within(0, troubles.len() as u64) as usize];
            if random.within(0, 2) == 0 {
                stage.cluster.proxy(id).make(trouble);
            } else {
                stage.cluster.trouble_everywhere(trouble);
            }
            stage.hold(time);
            stage.cluster.trouble_everywhere(Trouble::None);
            name
        }
    }
}

#[test]
fn faults_at_random() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    let length = std::env::var("FOREBAY_SOAK_S").map_or(120, |s| s.parse().expect("seconds"));
    let seed = seed();
    say(&format!("soak: FOREBAY_SEED={seed}, {length} s"));
    let mut random = Random::new(seed);
    play(&mut cluster, Scene::new("soak").proxied().rate(RECORDS_PER_S), |stage| {
        let start = Instant::now();
        let mut faults: BTreeMap<&str, u32> = BTreeMap::new();
        while start.elapsed() < Duration::from_secs(length) {
            *faults.entry(fault(stage, &mut random)).or_default() += 1;
            stage.cluster.wait_until_in_sync(stage.topic);
            std::thread::sleep(Duration::from_millis(random.within(0, 2_000)));
        }
        // Whatever was done to it, it delivers again.
        stage.until_delivered();
        format!("seed {seed}, faults {faults:?}")
    });
}
