//! Owns the count of what the schedules met.

/// How many schedules met what. A clean run that met nothing proves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Coverage {
    pub(super) schedules: u64,
    pub(super) records: u64,
    pub(super) refused_full: u64,
    pub(super) looks: u64,
    /// In the middle of a turn of the keeper.
    pub(super) looks_beside_keeper: u64,
    pub(super) process_crashes: u64,
    pub(super) power_cuts: u64,
    pub(super) crashes_in_a_write: u64,
    pub(super) crashes_in_open: u64,
    pub(super) rebuilds: u64,
    pub(super) spilled: u64,
    pub(super) replayed: u64,
    pub(super) recovered: u64,
    pub(super) set_aside: u64,
    pub(super) dropped: u64,
    pub(super) damaged: u64,
    pub(super) late_appends: u64,
    pub(super) late_survivors: u64,
    pub(super) reordered: u64,
    /// Records that were set aside because their topic was held.
    pub(super) held: u64,
    /// Of those, because their partition alone was; and how often one stood still and all others got
    /// through.
    pub(super) held_partition: u64,
    pub(super) stood_still: u64,
    pub(super) duplicates: u64,
    /// Records of a backlog that live ones came before.
    pub(super) overtaken: u64,
    pub(super) lost: u64,
    pub(super) disk_faults: u64,
    pub(super) append_failures: u64,
    pub(super) exposed: u64,
    pub(super) flushes_done: u64,
    /// Drills that ended with a report before the next was asked for.
    pub(super) drills: u64,
    pub(super) crashes_in_close: u64,
    pub(super) closed: u64,
    pub(super) closed_incomplete: u64,
    pub(super) segments_made: u64,
    pub(super) segments_removed: u64,
    pub(super) with_log: u64,
    /// Schedules with a log in which no segment was sealed; in which none was removed.
    pub(super) nothing_sealed: u64,
    pub(super) nothing_removed: u64,
}

impl Coverage {
    pub(super) fn add(&mut self, more: &Coverage) {
        self.schedules += more.schedules;
        self.records += more.records;
        self.refused_full += more.refused_full;
        self.looks += more.looks;
        self.looks_beside_keeper += more.looks_beside_keeper;
        self.process_crashes += more.process_crashes;
        self.power_cuts += more.power_cuts;
        self.crashes_in_a_write += more.crashes_in_a_write;
        self.crashes_in_open += more.crashes_in_open;
        self.rebuilds += more.rebuilds;
        self.spilled += more.spilled;
        self.replayed += more.replayed;
        self.recovered += more.recovered;
        self.set_aside += more.set_aside;
        self.dropped += more.dropped;
        self.damaged += more.damaged;
        self.late_appends += more.late_appends;
        self.late_survivors += more.late_survivors;
        self.reordered += more.reordered;
        self.held += more.held;
        self.held_partition += more.held_partition;
        self.stood_still += more.stood_still;
        self.duplicates += more.duplicates;
        self.overtaken += more.overtaken;
        self.lost += more.lost;
        self.disk_faults += more.disk_faults;
        self.append_failures += more.append_failures;
        self.exposed += more.exposed;
        self.flushes_done += more.flushes_done;
        self.drills += more.drills;
        self.crashes_in_close += more.crashes_in_close;
        self.closed += more.closed;
        self.closed_incomplete += more.closed_incomplete;
        self.segments_made += more.segments_made;
        self.segments_removed += more.segments_removed;
        self.with_log += more.with_log;
        self.nothing_sealed += more.nothing_sealed;
        self.nothing_removed += more.nothing_removed;
    }

    pub(super) fn each(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("schedules", self.schedules),
            ("records", self.records),
            ("refused_full", self.refused_full),
            ("looks", self.looks),
            ("looks_beside_keeper", self.looks_beside_keeper),
            ("process_crashes", self.process_crashes),
            ("power_cuts", self.power_cuts),
            ("crashes_in_a_write", self.crashes_in_a_write),
            ("crashes_in_open", self.crashes_in_open),
            ("rebuilds", self.rebuilds),
            ("spilled", self.spilled),
            ("replayed", self.replayed),
            ("recovered", self.recovered),
            ("set_aside", self.set_aside),
            ("dropped", self.dropped),
            ("damaged", self.damaged),
            ("late_appends", self.late_appends),
            ("late_survivors", self.late_survivors),
            ("reordered", self.reordered),
            ("held", self.held),
            ("held_partition", self.held_partition),
            ("stood_still", self.stood_still),
            ("duplicates", self.duplicates),
            ("lost", self.lost),
            ("disk_faults", self.disk_faults),
            ("append_failures", self.append_failures),
            ("exposed", self.exposed),
            ("flushes_done", self.flushes_done),
            ("drills", self.drills),
            ("crashes_in_close", self.crashes_in_close),
            ("closed", self.closed),
            ("closed_incomplete", self.closed_incomplete),
            ("segments_made", self.segments_made),
            ("segments_removed", self.segments_removed),
            ("with_log", self.with_log),
        ]
    }
}
