//! Starts a real Kafka to try things on: prints its address, runs until standard input ends.
//!
//! `cargo run -p forebay-testkit --example kafka`; every topic that is sent to is made, with
//! three partitions. The lines `pause`, `resume`, `kill` and `restart` do that to the broker.

use forebay_testkit::{Kafka, KafkaOptions};
use std::io::BufRead;

fn main() {
    let options = KafkaOptions { auto_create_partitions: Some(3), ..KafkaOptions::default() };
    let Some(mut kafka) = Kafka::start(options) else { return };
    println!("{}", kafka.brokers());
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.trim() {
            "pause" => kafka.pause(),
            "resume" => kafka.resume(),
            "kill" => kafka.kill(),
            "restart" => println!("back after {:?}", kafka.restart()),
            "" => {}
            other => println!("{other}? pause, resume, kill, restart, or end the input"),
        }
    }
}
