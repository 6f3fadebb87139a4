//! A process that forks beside its lanes, and within a closure.

use super::*;

#[test]
fn a_forked_child_is_refused_and_the_parent_goes_on() {
    let (lanes, mut drain) = Lanes::new(&SMALL).unwrap();
    lanes.send(&record(b"before")).unwrap();
    let frame = drain.pop(0).unwrap();
    // SAFETY: the child makes no use of other threads' locks but the allocator's, which glibc
    // keeps usable across a fork, and it ends with `_exit`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let mut failed = 0;
        failed |= i32::from(lanes.send(&record(b"child")) != Err(SendError::Forked));
        let with = lanes.send_with(&record(b""), 8, |_| 0);
        failed |= i32::from(with != Err(SendError::Forked)) << 1;
        failed |= i32::from(drain.view(&frame).is_some()) << 2;
        failed |= i32::from(refusals(&lanes, SendError::Forked) != 2) << 3;
        drop((lanes, drain));
        // SAFETY: ends the process, and nothing else.
        unsafe { libc::_exit(failed) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made; `status` is valid for the call.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "the child died: {status:#x}");
    assert_eq!(libc::WEXITSTATUS(status), 0);

    assert_eq!(drain.view(&frame).unwrap().value(), Some(&b"before"[..]));
    drain.release(&frame);
    lanes.send(&record(b"after")).unwrap();
    assert_eq!(popped_value(&mut drain, 0).unwrap(), b"after");
    assert_eq!(refusals(&lanes, SendError::Forked), 0);
}

#[test]
fn a_closure_that_forks_sends_in_the_parent_only() {
    let (lanes, mut drain) = Lanes::new(&SMALL).unwrap();
    let mut pid = -1;
    let sent = lanes.send_with(&record(b""), 8, |to| {
        // SAFETY: as above; the child touches nothing of the arena.
        pid = unsafe { libc::fork() };
        if pid != 0 {
            to[..6].copy_from_slice(b"parent");
        }
        6
    });
    assert!(pid >= 0);
    if pid == 0 {
        let failed = i32::from(sent != Err(SendError::Forked))
            | i32::from(drain.pop(0).is_some()) << 1
            | i32::from(drain.look(0).queued != 0) << 2;
        // SAFETY: ends the process, and nothing else.
        unsafe { libc::_exit(failed) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made; `status` is valid for the call.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "the child died: {status:#x}");
    assert_eq!((libc::WEXITSTATUS(status), sent), (0, Ok(())));
    assert_eq!(popped_value(&mut drain, 0).unwrap(), b"parent");
    assert_eq!(drain.pop(0), None);
}
