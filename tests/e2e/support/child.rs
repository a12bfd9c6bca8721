//! What a child process does between fork and exec: tie its life to ours, lower its limits, forbid
//! itself system calls.
#![allow(
    unsafe_code,
    reason = "pre_exec is the only place to set limits and filters for a child"
)]

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// What is done to a child before its program starts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Before {
    /// Soft and hard limit of open descriptors.
    pub(crate) descriptors: Option<u64>,
    /// The number of a system call that fails with EPERM, as container runtimes have it.
    pub(crate) forbid: Option<libc::c_long>,
    /// The only CPU that it may run on.
    pub(crate) cpu: Option<usize>,
    /// An open `cgroup.procs` of a control group that it joins.
    pub(crate) group: Option<RawFd>,
}

/// Makes the children of `command` die with this thread and start with these restrictions.
pub(crate) fn restrict(command: &mut Command, before: Before) {
    let hook = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // To write down the memory of one that is made to crash takes time, and room on the disk.
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        setrlimit(Resource::Core, none)?;
        if let Some(limit) = before.descriptors {
            let limit = Rlimit {
                current: Some(limit),
                maximum: Some(limit),
            };
            setrlimit(Resource::Nofile, limit)?;
        }
        if let Some(cpu) = before.cpu {
            let mut set = CpuSet::new();
            set.set(cpu);
            sched_setaffinity(None, &set)?;
        }
        if let Some(group) = before.group {
            // SAFETY: whoever names it keeps it open until the child has started.
            let group = unsafe { BorrowedFd::borrow_raw(group) };
            // The child itself.
            rustix::io::write(group, b"0")?;
        }
        if let Some(number) = before.forbid {
            forbid(number)?;
        }
        Ok(())
    };
    // SAFETY: the hook runs in the forked child, where only async-signal-safe calls are allowed: it
    // makes the system calls prctl, setrlimit, sched_setaffinity, write and seccomp, and allocates nothing.
    unsafe { command.pre_exec(hook) };
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Installs a seccomp filter (seccomp(2)) that lets everything pass but this system call.
fn forbid(number: libc::c_long) -> io::Result<()> {
    const fn statement(code: u32, k: u32) -> libc::sock_filter {
        jump(code, k, 0, 0)
    }
    const fn jump(code: u32, k: u32, yes: u8, no: u8) -> libc::sock_filter {
        libc::sock_filter {
            code: code as u16,
            jt: yes,
            jf: no,
            k,
        }
    }
    // The first field of `seccomp_data` is the number of the call.
    let filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            number as u32,
            0,
            1,
        ),
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: PR_SET_NO_NEW_PRIVS takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: the kernel copies the program, whose length and instructions are those of `filter`,
    // during the call; both outlive it.
    check(unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    })
}
