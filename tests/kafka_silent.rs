//! States of a producer in which it is silent for ever, on three real brokers: the watch over the
//! oldest record in flight ends them. And pauses, of which none outlives its cause.
#![cfg(feature = "kafka")]

mod scenes_common;

use forebay::{Pipeline, Stats};
use forebay_testkit::audit::Audit;
use forebay_testkit::{Cluster, Trouble, heavy, private_dir, say, until};
use scenes_common::{Scene, common, play};
use std::time::{Duration, Instant};

/// After this long without an answer, whatever owes one is paused.
const SOME_PAUSED: Duration = Duration::from_secs(5);
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(120);
/// Well above what a busy machine may take for an answer.
const STALL: Duration = Duration::from_secs(5);
/// The API key of `InitProducerId`.
const INIT_PRODUCER_ID: i16 = 22;
const RECORDS: u64 = 300;

/// Answers that the proxies have spoilt so far.
fn spoilt(cluster: &Cluster) -> u64 {
    cluster.ids().into_iter().map(|id| cluster.proxy(id).spoilt_answers()).sum()
}

/// Sends to a healthy cluster, then with this trouble, until a rebuild is made of it; then without
/// it again. With `from_start` a pipeline is opened in the trouble instead.
fn silent_for_ever(name: &str, trouble: Trouble, from_start: bool) {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    let topic_name = cluster.topic("silent", common::PARTITIONS, &[]);
    let dir = private_dir();
    let mut sent = 0;
    for is_faulted in [false, true] {
        let before = spoilt(&cluster);
        if is_faulted && from_start {
            cluster.trouble_everywhere(trouble);
        }
        let builder = Pipeline::builder().brokers(cluster.proxied()).wal_dir(dir.path());
        let pipeline = builder.stall_timeout(STALL).open().expect("it opens");
        let topic = pipeline.topic(&topic_name).expect("a good name");
        pipeline.ready(LIMIT).expect("the brokers are there");
        let mut send = |records: u64| {
            let all = sent..sent + records;
            all.for_each(|number| {
                let id = forebay_testkit::audit::Id { source: 0, number };
                assert!(common::send(&topic, id), "no room for {number}");
            });
            sent += records;
        };
        let wait = |what: &str, done: &dyn Fn(&Stats) -> bool| {
            until(LIMIT, what, || done(&pipeline.stats()));
        };
        if is_faulted && !from_start {
            send(RECORDS);
            common::flush(&pipeline);
            cluster.trouble_everywhere(trouble);
            until(LIMIT, "an answer is spoilt", || spoilt(&cluster) > before);
        }
        send(RECORDS);
        if is_faulted {
            let delivered = pipeline.stats().books.delivered;
            wait("the watch ends it", &|s| s.rebuilds > 0);
            let stats = pipeline.stats();
            assert!(spoilt(&cluster) > before, "nothing was spoilt");
            assert_eq!(stats.books.delivered, delivered, "it wasn't silent: {stats:?}");
            let why = stats.last_rebuild_reason.clone().unwrap_or_default();
            assert!(why.starts_with("stalled: no report from"), "{stats:?}");
            cluster.trouble_everywhere(Trouble::None);
            let spoilt = spoilt(&cluster) - before;
            say(&format!("silent, {name}: {spoilt} answers spoilt, then a rebuild: {why}"));
        }
        common::flush(&pipeline);
        let report = pipeline.close(Duration::from_secs(10)).expect("it closes");
        let books = &report.stats.books;
        assert_eq!((books.delivered, books.set_aside, books.dropped), (books.accepted, 0, 0));
        if !is_faulted {
            assert_eq!(report.stats.rebuilds, 0, "the control: {:?}", report.stats);
        }
    }
    let audit = Audit::new(&cluster.oracle().read(&topic_name).unwrap(), common::stream);
    audit.assert_whole(&[sent]);
    say(&format!("silent, {name}: {}", audit.line(&[sent])));
}

#[test]
fn no_producer_id_is_ever_given() {
    silent_for_ever("no producer id", Trouble::SwallowAnswersTo(INIT_PRODUCER_ID), true);
}

#[test]
fn metadata_names_no_broker() {
    silent_for_ever("no brokers in metadata", Trouble::NoBrokers, false);
}

/// While every partition is paused: the connections end, come back, hang again, and the instance is
/// replaced. Each partition takes records again.
#[test]
fn no_pause_outlives_its_cause() {
    let _heavy = heavy();
    let Some(mut cluster) = Cluster::shared() else { return };
    play(&mut cluster, Scene::new("pauses").proxied(), |stage| {
        let partitions = common::PARTITIONS;
        let ends = |stage: &scenes_common::Stage<'_>| {
            stage.cluster.oracle().end_offsets(stage.topic).expect("the topic is there")
        };
        let all_grow = |stage: &scenes_common::Stage<'_>, after: &str| {
            let before = ends(stage);
            assert_eq!(before.len(), partitions as usize);
            until(LIMIT, after, || {
                ends(stage).iter().zip(&before).all(|(now, then)| *now > *then + 500)
            });
        };
        let pause = |stage: &scenes_common::Stage<'_>| {
            stage.cluster.trouble_everywhere(Trouble::Hang);
            // One that owes nothing when the others are paused has nothing to be silent about.
            let since = Instant::now();
            stage.until(|stats| match stats.states.paused_partitions {
                0 => false,
                paused => paused == partitions || since.elapsed() > SOME_PAUSED,
            });
        };
        pause(stage);
        stage.cluster.trouble_everywhere(Trouble::Refuse);
        stage.until(|stats| stats.states.disconnected.is_some());
        stage.cluster.trouble_everywhere(Trouble::None);
        all_grow(stage, "every partition takes records after a disconnect");
        pause(stage);
        let rebuilds = stage.pipeline.stats().rebuilds;
        stage.pipeline.reload(&[]).expect("it is reloaded");
        stage.until(|stats| stats.rebuilds > rebuilds);
        stage.cluster.trouble_everywhere(Trouble::None);
        all_grow(stage, "every partition takes records after a rebuild");
        stage.until(|stats| stats.states.paused_partitions == 0);
        "all partitions took records after a disconnect and after a rebuild".to_owned()
    });
}
