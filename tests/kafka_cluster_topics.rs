//! Three brokers, and what befalls a topic: too few replicas, no leader, more partitions, gone.
#![cfg(feature = "kafka")]

mod scenes_common;

use forebay::{Level, Topic};
use forebay_testkit::{Cluster, Trouble, heavy, say, until};
use scenes_common::{Scene, common, left_out, play, still};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn too_few_replicas_in_sync() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    let topic = cluster.topic("insync", common::PARTITIONS, &[("min.insync.replicas", "3")]);
    play(&mut cluster, Scene::new("min.insync not met").on(topic), |stage| {
        stage.cluster.kill(2);
        stage.cluster.wait_for(stage.topic, |all| all.iter().all(|p| p.in_sync.len() == 2));
        stage.until_spilled();
        // The leaders learn it one after another.
        let before = still(|| stage.cluster.log_bytes(1, stage.topic));
        stage.hold(Duration::from_secs(3));
        assert_eq!(stage.cluster.log_bytes(1, stage.topic), before, "it was appended");
        stage.cluster.restart(&[2]);
        stage.cluster.wait_until_in_sync(stage.topic);
        let first = stage.until_delivered();
        format!("2 of 3 in sync for 3 s: nothing appended; in sync, the first report {first:.1?}")
    });
}

#[test]
fn a_partition_without_a_leader() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    let topic = cluster.topic_on("leaderless", &[&[1], &[2], &[3]]);
    let scene = Scene::new("leaderless partition").on(topic).span(SPAN);
    let outcome = play(&mut cluster, scene, |stage| {
        // The control: with a leader everywhere nothing is held.
        let healthy = stage.pipeline.stats();
        assert!(healthy.held.is_empty() && healthy.books.delivered > 0, "{healthy:?}");
        assert_eq!(healthy.books.set_aside, 0, "{healthy:?}");
        stage.cluster.kill(3);
        stage.cluster.wait_for(stage.topic, |all| all[2].leader.is_none());
        let (start, before) = (Instant::now(), stage.pipeline.stats().books.delivered);
        let receipt = stage.track(2);
        // More than the span has room for, while nothing of the third is answered.
        stage.until(|stats| stats.books.delivered > before + 3 * SPAN);
        let others = start.elapsed();
        let stats = stage.pipeline.stats();
        let held: Vec<_> = stats.held.iter().map(|h| (h.reason, h.partition)).collect();
        assert_eq!(held, [("partition_stalled", Some(2))], "{stats:?}");
        assert!(
            stage.cluster.oracle().leaders(stage.topic).is_ok_and(|all| all[2].leader.is_none())
        );
        let pending = receipt.wait(forebay::Level::Delivered, Duration::from_millis(1));
        assert!(pending.is_err(), "{pending:?}");
        let aside = stats.held[0].records;
        stage.cluster.restart(&[3]);
        let start = Instant::now();
        stage.cluster.wait_for(stage.topic, |all| all.iter().all(|p| p.leader.is_some()));
        stage.until(|stats| stats.held.is_empty());
        let back = start.elapsed();
        receipt.wait(forebay::Level::Delivered, Duration::from_secs(120)).expect("it is delivered");
        format!(
            "the others took {} in {others:.1?} of it, {aside} set aside; flowing again {back:.1?} \
             after its broker",
            3 * SPAN
        )
    });
    assert_eq!((outcome.stats.rebuilds, outcome.audit.duplicates), (0, 0));
}

/// Brokers that are behind, or just started, say that there is no such topic; then they say otherwise.
#[test]
fn a_topic_is_missing_from_metadata_and_comes_back() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    let outcome = play(&mut cluster, Scene::new("missing from metadata").proxied(), |stage| {
        let spoilt = |stage: &scenes_common::Stage<'_>| -> u64 {
            let ids = stage.cluster.ids().into_iter();
            ids.map(|id| stage.cluster.proxy(id).spoilt_answers()).sum()
        };
        let healthy = stage.pipeline.stats();
        assert!(healthy.held.is_empty() && healthy.books.delivered > 0, "{healthy:?}");
        let before = spoilt(stage);
        stage.cluster.trouble_everywhere(Trouble::NoTopics);
        until(Duration::from_secs(120), "an answer is spoilt", || spoilt(stage) > before);
        stage.until(|stats| stats.held.iter().any(|h| h.reason == "topic_unavailable"));
        stage.hold(Duration::from_secs(2));
        let aside = stage.pipeline.stats().held.iter().map(|h| h.records).sum::<u64>();
        assert!(aside > 0, "{:?}", stage.pipeline.stats());
        let answers = spoilt(stage) - before;
        stage.cluster.trouble_everywhere(Trouble::None);
        let start = Instant::now();
        stage.until(|stats| stats.held.is_empty());
        let back = start.elapsed();
        format!("{answers} answers said so, {aside} set aside; flowing again {back:.1?} after it")
    });
    assert_eq!(outcome.stats.rebuilds, 0);
}

/// The span of that scene.
const SPAN: u64 = 16_384;

/// Keys move to other partitions: their order is given up, nothing else.
#[test]
fn partitions_are_added() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    if left_out("partitions added") {
        return;
    }
    let outcome = play(&mut cluster, Scene::new("partitions added").unjudged(), |stage| {
        stage.cluster.oracle().grow_topic(stage.topic, 6).expect("it grows");
        let start = Instant::now();
        let used = |stage: &scenes_common::Stage<'_>| {
            stage
                .cluster
                .oracle()
                .end_offsets(stage.topic)
                .is_ok_and(|e| e[3..].iter().all(|n| *n > 0))
        };
        while !used(stage) {
            assert!(start.elapsed() < Duration::from_secs(90), "the new partitions stay empty");
            std::thread::sleep(Duration::from_millis(100));
        }
        format!("all three new ones in use after {:.1?}", start.elapsed())
    });
    let books = outcome.stats.books;
    assert_eq!((books.delivered, books.set_aside, books.dropped), (books.accepted, 0, 0));
    assert_eq!((outcome.audit.missing(&outcome.counts).len(), outcome.audit.duplicates), (0, 0));
}

/// What was in the topic is gone with it; whatever was accepted is delivered or set aside. What is
/// in flight to the partition that is gone is never reported: the instance is replaced for that,
/// not for the silence, which would stop the topic beside for as long as the watch is patient.
#[test]
fn a_topic_is_deleted_and_made_again_with_fewer_partitions() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    if left_out("topic made again") {
        return;
    }
    let beside_name = cluster.topic("beside", 1, &[]);
    let outcome = play(&mut cluster, Scene::new("topic made again").unjudged(), |stage| {
        let beside = stage.pipeline.topic(&beside_name).expect("a good name");
        let oracle = stage.cluster.oracle();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let others = scope.spawn(|| longest_way(&beside, &over));
            oracle.delete_topic(stage.topic).expect("it is deleted");
            std::thread::sleep(Duration::from_secs(1));
            oracle.create_topic(stage.topic, 2, &[]).expect("it is made again");
            let start = Instant::now();
            let both = || {
                let ends = oracle.end_offsets(stage.topic).unwrap_or_default();
                ends.len() == 2 && ends.iter().all(|n| *n > 0)
            };
            while start.elapsed() < Duration::from_secs(120) && !both() {
                std::thread::sleep(Duration::from_millis(100));
            }
            let after = start.elapsed();
            over.store(true, Ordering::Relaxed);
            let (others, longest) = others.join().expect("the others are delivered");
            assert!(both(), "{:?}", stage.pipeline.stats());
            let held: u64 = stage.pipeline.stats().held.iter().map(|h| h.records).sum();
            stage.until(|stats| stats.held.is_empty());
            format!(
                "both partitions of the new one in use after {after:.1?}; {held} held then, all \
                 redriven after {:.1?}; the topic beside: {others} delivered meanwhile, the longest \
                 way {longest:.1?}",
                start.elapsed()
            )
        })
    });
    let stats = outcome.stats;
    say(&format!("topic made again: {} rebuilds, {:?}", stats.rebuilds, stats.last_rebuild_reason));
    let books = stats.books;
    // The records beside are accepted by the same books.
    assert_eq!(books.delivered + books.set_aside, books.accepted, "{books:?}");
    assert!(
        stats.last_rebuild_reason.is_none_or(|why| !why.contains("stalled")),
        "the watch ended it"
    );
}

/// Sends to the topic, one by one, until it is over: how many, and how long the slowest took.
fn longest_way(topic: &Topic, over: &AtomicBool) -> (u64, Duration) {
    let (mut sent, mut longest) = (0, Duration::ZERO);
    while !over.load(Ordering::Relaxed) {
        let start = Instant::now();
        let receipt = topic.record(b"beside").send_tracked().expect("a receipt is free");
        receipt.wait(Level::Delivered, Duration::from_secs(120)).expect("it is delivered");
        longest = longest.max(start.elapsed());
        sent += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
    (sent, longest)
}
