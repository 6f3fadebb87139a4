//! Owns `forebay demo --drill`: the pipeline rehearses the outage, and the senders are told what
//! to count each send under.

use super::senders::{Phase, Shared};
use super::sleep_until;
use forebay::{DrillError, DrillReport, Outage, Pipeline};
use std::time::Duration;

/// How much longer is sent than the outage lasts, at least.
pub const AFTERWARDS: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(2);

/// Asks for a drill (`plan`: when, from the first send on, and for how long) and waits for it.
pub fn rehearse(
    pipeline: &Pipeline,
    sending: &Shared,
    plan: (Duration, Duration),
) -> Result<DrillReport, DrillError> {
    sleep_until(sending.begin + plan.0);
    std::thread::scope(|scope| {
        let drill = scope.spawn(|| pipeline.drill(Outage::lasting(plan.1)));
        while !drill.is_finished() {
            let was = sending.phase();
            let now = match (pipeline.stats().states.drilling, was) {
                (true, _) => Phase::Outage,
                (false, Phase::Healthy) => Phase::Healthy,
                (false, _) => Phase::CatchingUp,
            };
            sending.set_phase(now);
            std::thread::sleep(TICK);
        }
        sending.set_phase(Phase::Healthy);
        drill.join().unwrap_or(Err(DrillError::Closed))
    })
}
