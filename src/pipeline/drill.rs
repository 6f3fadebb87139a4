//! Owns [`Pipeline::drill`], the caller's side of a rehearsed outage.

use super::{FLUSHER_GONE, Pipeline};
use crate::drill::{Desk, DrillError, DrillReport, Outage};
use crate::receipt::Waiting;

impl Pipeline {
    /// Rehearses an outage, in production if you like: for the time of `outage` nothing is handed
    /// to Kafka, records spill into the log and are replayed, and what was seen comes back once
    /// they are delivered. Sends go on as ever; whoever times them sees what an outage costs.
    ///
    /// What is in flight when it begins may finish. The outage is ended early when it would cost
    /// something: the log is full or fails, a lane refuses, records are exposed. A crash of the
    /// process meanwhile is a crash in an outage: the loss window holds. [`Pipeline::close`]
    /// ends it at once and delivers. The replay keeps to its ramp and its caps.
    ///
    /// Waits on the caller's thread until the backlog is gone, or the time is over that
    /// [`Outage::drain_within`] gives it.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use forebay::{MemorySink, Outage, Pipeline};
    /// use std::time::Duration;
    /// # let home = tempfile::tempdir()?;
    /// # let dir = home.path().join("wal");
    /// let pipeline = Pipeline::builder().wal_dir(&dir).sink(MemorySink::new()).open()?;
    /// let report = pipeline.drill(Outage::lasting(Duration::from_millis(50)))?;
    /// assert!(report.is_good(), "{report}");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Why it was refused: see [`DrillError`]. Nothing has happened then.
    pub fn drill(&self, outage: Outage) -> Result<DrillReport, DrillError> {
        let shared = &self.shared;
        if self.is_forked() {
            return Err(DrillError::Closed);
        }
        shared.ask_drill(outage)?;
        let has_ended = || {
            let published = shared.published.lock();
            let is_over = published.closed.is_some() || published.stopped.is_some();
            is_over || matches!(*shared.drill.lock(), Desk::Ended(_))
        };
        let limit = outage.lasts.saturating_add(outage.drain_within).saturating_add(FLUSHER_GONE);
        shared.wait_until(limit, &mut { has_ended });
        let desk = std::mem::take(&mut *shared.drill.lock());
        match desk {
            Desk::Ended(result) => *result,
            _ => {
                let published = shared.published.lock();
                Err(match (&published.stopped, &published.closed) {
                    (Some(why), _) => DrillError::Stopped(why.clone()),
                    (None, Some(_)) => DrillError::Closed,
                    (None, None) => DrillError::Unhealthy("the flusher stands".into()),
                })
            }
        }
    }
}
