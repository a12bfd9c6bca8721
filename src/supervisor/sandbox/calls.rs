//! The system calls that the worker may no longer make (seccomp(2)), for all of its threads.
//!
//! It is a list of what is refused, not of what is allowed: a libc that makes a new call somewhere
//! must not break a server at night. Refused calls fail with EPERM and are counted, by a thread that the
//! kernel asks about each of them; nothing is ever killed, because a refusal may be a library's mere
//! curiosity. The filter is made here, instruction by instruction, because the builders that exist know
//! neither that question nor an answer to a call of a foreign architecture but to kill.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::State;
use crate::supervisor::sys::filter::{
    ARCH_AT, Instruction, Listen, NUMBER_AT, Storage, argument_at, install,
};

/// How often a refusal is logged at most; those between are in the count.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// `AUDIT_ARCH_*` (linux/audit.h) of what this is compiled for; `None` where nobody has checked the
/// filter.
const ARCH: Option<u32> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
    Some(0xc000_003e)
} else if cfg!(target_arch = "aarch64") {
    Some(0xc000_00b7)
} else if cfg!(target_arch = "riscv64") {
    Some(0xc000_00f3)
} else {
    None
};

/// Numbers from here on belong to the x32 table of x86-64 (`__X32_SYSCALL_BIT`), and to nobody else.
const X32: u32 = 0x4000_0000;

/// Every flag of clone(2) that makes a namespace.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();

/// Families of sockets that a worker makes: to clients' and upstreams' addresses, and to files.
const FAMILIES: [libc::c_int; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// The protocol of netlink that tells of interfaces and routes. getaddrinfo(3) of glibc asks by it which
/// addresses this machine has, to sort what it has found, and goes without where it may not. That happens
/// at each lookup and is nobody's attack, so it is refused without being counted.
const ROUTES: u32 = libc::NETLINK_ROUTE.cast_unsigned();

/// Requests to a terminal that put input into it, for the shell that comes after.
const TERMINAL_INPUT: [u32; 2] = [libc::TIOCSTI as u32, libc::TIOCLINUX as u32];

macro_rules! calls {
    ($($(#[$on:meta])* $name:ident $number:ident,)*) => {
        /// What is refused whatever the arguments.
        const REFUSED: &[(&str, libc::c_long)] = &[
            $($(#[$on])* (stringify!($name), libc::$number),)*
        ];
    };
}

calls! {
    // The rings stand, and the sockets listen.
    io_uring_setup SYS_io_uring_setup,
    bind SYS_bind,
    listen SYS_listen,
    // Other programs, and other processes.
    execve SYS_execve,
    execveat SYS_execveat,
    ptrace SYS_ptrace,
    process_vm_readv SYS_process_vm_readv,
    process_vm_writev SYS_process_vm_writev,
    process_madvise SYS_process_madvise,
    pidfd_getfd SYS_pidfd_getfd,
    kcmp SYS_kcmp,
    // Large and seldom used parts of the kernel.
    bpf SYS_bpf,
    perf_event_open SYS_perf_event_open,
    userfaultfd SYS_userfaultfd,
    keyctl SYS_keyctl,
    add_key SYS_add_key,
    request_key SYS_request_key,
    fanotify_init SYS_fanotify_init,
    lookup_dcookie SYS_lookup_dcookie,
    nfsservctl SYS_nfsservctl,
    // Files beside their directories, and file systems.
    open_by_handle_at SYS_open_by_handle_at,
    mount SYS_mount,
    umount2 SYS_umount2,
    pivot_root SYS_pivot_root,
    chroot SYS_chroot,
    open_tree SYS_open_tree,
    move_mount SYS_move_mount,
    fsopen SYS_fsopen,
    fsconfig SYS_fsconfig,
    fsmount SYS_fsmount,
    fspick SYS_fspick,
    mount_setattr SYS_mount_setattr,
    quotactl SYS_quotactl,
    quotactl_fd SYS_quotactl_fd,
    acct SYS_acct,
    swapon SYS_swapon,
    swapoff SYS_swapoff,
    // Namespaces.
    setns SYS_setns,
    unshare SYS_unshare,
    // The machine.
    kexec_load SYS_kexec_load,
    kexec_file_load SYS_kexec_file_load,
    init_module SYS_init_module,
    finit_module SYS_finit_module,
    delete_module SYS_delete_module,
    reboot SYS_reboot,
    settimeofday SYS_settimeofday,
    clock_settime SYS_clock_settime,
    clock_adjtime SYS_clock_adjtime,
    adjtimex SYS_adjtimex,
    sethostname SYS_sethostname,
    setdomainname SYS_setdomainname,
    syslog SYS_syslog,
    vhangup SYS_vhangup,
    personality SYS_personality,
    #[cfg(target_arch = "x86_64")]
    iopl SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    ioperm SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    modify_ldt SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    uselib SYS_uselib,
}

/// What is refused for some arguments.
const PARTLY: &[(&str, libc::c_long)] = &[
    ("socket", libc::SYS_socket),
    ("socketpair", libc::SYS_socketpair),
    ("clone", libc::SYS_clone),
    ("ioctl", libc::SYS_ioctl),
];

/// Every call that is refused, by the names that the counters have; the last one stands for all of
/// another architecture.
const NAMES: usize = REFUSED.len() + PARTLY.len() + 1;

/// Lets no thread of this process make the system calls of the list any more. To be called when all rings
/// stand; what is left to do must not need any of them.
///
/// Gives the counters too, where the kernel can ask (5.7) and nobody else is being asked already, as
/// in some containers. Without them the calls are refused all the same.
///
/// `bind`: bind(2) stays, for sockets that connect from a local address. It alone opens no door: listen(2)
/// is refused, and Landlock leaves to TCP no port but one that the kernel takes (it knows nothing of UDP).
pub fn restrict_calls(bind: bool) -> (State, Option<Notifier>) {
    let Some(arch) = ARCH else {
        return (
            State::Missing("there is no filter for this architecture".to_owned()),
            None,
        );
    };
    let refused = NAMES - 1 - usize::from(bind);
    let why = match Notifier::start(arch, bind) {
        Ok(notifier) => {
            let detail = format!("seccomp: {refused} system calls refused and counted");
            return (State::Enforced(detail), Some(notifier));
        }
        Err(error) => error,
    };
    let answer = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let state = match install(&filter(arch, answer, bind), Listen::No) {
        Ok(_) => State::Enforced(format!(
            "seccomp: {refused} system calls refused, but not counted ({why})"
        )),
        Err(error) => State::Missing(match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOSYS) => {
                "this kernel has no seccomp filters: it takes CONFIG_SECCOMP_FILTER".to_owned()
            }
            _ => format!("the seccomp filter can't be installed: {error}"),
        }),
    };
    (state, None)
}

/// How often calls were refused, for the status. Its thread answers the kernel as long as the process
/// lives, and holds up nobody's end: it sleeps in the kernel, and exit ends it there.
#[derive(Clone, Debug)]
pub struct Notifier {
    refusals: Arc<Refusals>,
}

impl Notifier {
    /// Installs the filter that asks, with a thread that answers: the thread first, because a call that
    /// is refused waits for it.
    fn start(arch: u32, bind: bool) -> io::Result<Self> {
        let storage = Storage::new()?;
        let refusals = Arc::new(Refusals::default());
        let (sender, receiver) = sync_channel(1);
        let counted = Arc::clone(&refusals);
        thread::Builder::new()
            .name("beltway-refused".to_owned())
            .spawn(move || answer(&receiver, storage, arch, &counted))?;
        let listener = install(
            &filter(arch, libc::SECCOMP_RET_USER_NOTIF, bind),
            Listen::Yes,
        )?;
        let listener = listener.ok_or(io::ErrorKind::InvalidData)?;
        // The thread is there until it is given something, and this is the one thing.
        sender
            .try_send(listener)
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(Self { refusals })
    }

    /// How many calls were refused so far.
    pub fn refused(&self) -> u64 {
        self.refusals.total.load(Ordering::Relaxed)
    }

    /// How many of each call were refused, without those that never were.
    pub fn by_call(&self) -> Vec<(&'static str, u64)> {
        let counts = self.refusals.by_call.iter().enumerate();
        counts
            .map(|(index, count)| (name(index), count.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// The call that was refused last.
    pub fn last(&self) -> Option<&'static str> {
        let last = self.refusals.last.load(Ordering::Relaxed);
        (last < NAMES).then(|| name(last))
    }
}

/// Counters that the thread writes and everybody reads.
#[derive(Debug)]
struct Refusals {
    total: AtomicU64,
    by_call: [AtomicU64; NAMES],
    /// Index of a name; beyond them: none yet.
    last: AtomicUsize,
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            total: AtomicU64::new(0),
            by_call: [const { AtomicU64::new(0) }; NAMES],
            last: AtomicUsize::new(usize::MAX),
        }
    }
}

/// The body of the thread: refuses and counts until there is nothing more to wait for. It must make no
/// call that is refused: nobody would answer.
fn answer(listener: &Receiver<OwnedFd>, mut storage: Storage, arch: u32, refusals: &Refusals) {
    let Ok(listener) = listener.recv() else {
        // The filter could not be installed.
        return;
    };
    let mut logged: Option<Instant> = None;
    loop {
        let asked = match storage.receive(listener.as_fd()) {
            Ok(asked) => asked,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOENT)) => {
                continue;
            }
            Err(error) => {
                tracing::error!(%error, "refused system calls are not counted any more");
                return;
            }
        };
        let index = index(asked.arch == arch, asked.number);
        refusals.by_call[index].fetch_add(1, Ordering::Relaxed);
        refusals.last.store(index, Ordering::Relaxed);
        let total = refusals.total.fetch_add(1, Ordering::Relaxed) + 1;
        // A caller that is gone needs no answer.
        let _ = storage.refuse(listener.as_fd(), asked.id, libc::EPERM);
        if logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            logged = Some(Instant::now());
            tracing::warn!(
                call = name(index),
                total,
                "the sandbox refused a system call"
            );
        }
    }
}

/// The counter of a call.
fn index(native: bool, number: u32) -> usize {
    let known = REFUSED.iter().chain(PARTLY);
    known
        .enumerate()
        .find(|(_, (_, of))| native && *of == libc::c_long::from(number))
        .map_or(NAMES - 1, |(index, _)| index)
}

fn name(index: usize) -> &'static str {
    let mut known = REFUSED.iter().chain(PARTLY);
    known
        .nth(index)
        .map_or("a call of another architecture", |(name, _)| *name)
}

/// The filter: `refusal` for what is refused. Tests of the number come one after the other; since kernel
/// 5.11 it remembers which numbers are always allowed and runs the filter for none of those.
fn filter(arch: u32, refusal: u32, bind: bool) -> Vec<Instruction> {
    let mut code = Code(Vec::with_capacity(2 * NAMES + 32));
    code.load(ARCH_AT);
    code.skip_if_equal(arch, 1);
    code.answer(refusal);
    code.load(NUMBER_AT);
    code.answer_if(libc::BPF_JGE, X32, refusal);
    for (_, call) in REFUSED
        .iter()
        .filter(|(_, it)| !bind || *it != libc::SYS_bind)
    {
        code.answer_if(libc::BPF_JEQ, number(*call), refusal);
    }
    // Its flags are in memory, where a filter can't look. Every libc takes clone(2) instead.
    let unknown = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
    let refusal_uncounted = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    code.answer_if(libc::BPF_JEQ, number(libc::SYS_clone3), unknown);
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        code.block(call, |code| {
            code.load(argument_at(0));
            for family in FAMILIES {
                code.answer_if(
                    libc::BPF_JEQ,
                    family.cast_unsigned(),
                    libc::SECCOMP_RET_ALLOW,
                );
            }
            code.skip_unless_equal(libc::AF_NETLINK.cast_unsigned(), 3);
            code.load(argument_at(2));
            code.answer_if(libc::BPF_JEQ, ROUTES, refusal_uncounted);
            code.answer(refusal);
        });
    }
    code.block(libc::SYS_clone, |code| {
        code.load(argument_at(0));
        code.answer_if(libc::BPF_JSET, NAMESPACES, refusal);
        code.answer(libc::SECCOMP_RET_ALLOW);
    });
    code.block(libc::SYS_ioctl, |code| {
        code.load(argument_at(1));
        for request in TERMINAL_INPUT {
            code.answer_if(libc::BPF_JEQ, request, refusal);
        }
        code.answer(libc::SECCOMP_RET_ALLOW);
    });
    code.answer(libc::SECCOMP_RET_ALLOW);
    code.0
}

/// The number of a call as a filter sees it.
fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).expect("numbers of system calls are small")
}

/// Instructions of classic BPF (linux/filter.h): one accumulator, jumps forward alone.
struct Code(Vec<Instruction>);

impl Code {
    fn push(&mut self, code: u32, k: u32, (jt, jf): (u8, u8)) {
        let code = code as u16;
        self.0.push(Instruction { code, jt, jf, k });
    }

    /// Puts a word of the call's data into the accumulator.
    fn load(&mut self, at: u32) {
        self.push(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, (0, 0));
    }

    /// Ends with an answer.
    fn answer(&mut self, answer: u32) {
        self.push(libc::BPF_RET | libc::BPF_K, answer, (0, 0));
    }

    /// Skips so many instructions if the accumulator has this value.
    fn skip_if_equal(&mut self, value: u32, count: u8) {
        self.push(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            value,
            (count, 0),
        );
    }

    /// Skips so many instructions unless the accumulator has this value.
    fn skip_unless_equal(&mut self, value: u32, count: u8) {
        self.push(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            value,
            (0, count),
        );
    }

    /// Ends with an answer if the accumulator stands in this relation to the value.
    fn answer_if(&mut self, relation: u32, value: u32, answer: u32) {
        self.push(libc::BPF_JMP | relation | libc::BPF_K, value, (0, 1));
        self.answer(answer);
    }

    /// Looks closer at one call: the accumulator has the number, and `body` ends with an answer.
    fn block(&mut self, call: libc::c_long, body: impl FnOnce(&mut Self)) {
        let mut inner = Self(Vec::new());
        body(&mut inner);
        let len = u8::try_from(inner.0.len()).expect("a block is a few instructions");
        self.push(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            number(call),
            (0, len),
        );
        self.0.append(&mut inner.0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::path::Path;
    use std::sync::Barrier;

    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketType, socket};

    use super::*;
    use crate::runtime::engine::caps::{EngineChoice, Selection};
    use crate::runtime::mailbox::Wake;
    use crate::runtime::op::{Op, Output};
    use crate::supervisor::alone::{alone, skip};
    use crate::supervisor::sandbox::files::{Grants, restrict_files};
    use crate::supervisor::sys::filter::raw;

    const REFUSE: u32 = libc::SECCOMP_RET_USER_NOTIF;

    /// What the filter answers, by the rules of classic BPF.
    fn run(code: &[Instruction], arch: u32, call: u32, arguments: [u64; 3]) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = code[at];
            let relation = u32::from(code) & 0xf0;
            at += 1;
            let holds = match u32::from(code) & 0x07 {
                libc::BPF_RET => return k,
                libc::BPF_LD => {
                    accumulator = match k {
                        ARCH_AT => arch,
                        NUMBER_AT => call,
                        place if place == argument_at(0) => arguments[0] as u32,
                        place if place == argument_at(1) => arguments[1] as u32,
                        place if place == argument_at(2) => arguments[2] as u32,
                        place => panic!("nothing is at {place}"),
                    };
                    continue;
                }
                libc::BPF_JMP if relation == libc::BPF_JEQ => accumulator == k,
                libc::BPF_JMP if relation == libc::BPF_JGE => accumulator >= k,
                libc::BPF_JMP if relation == libc::BPF_JSET => accumulator & k != 0,
                other => panic!("no such instruction: {other}"),
            };
            at += usize::from(if holds { jt } else { jf });
        }
    }

    #[test]
    fn the_filter_refuses_the_list_and_looks_at_arguments() {
        let Some(arch) = ARCH else {
            return skip("no filter for this architecture");
        };
        let code = filter(arch, REFUSE, false);
        assert!(code.len() < 4096, "BPF_MAXINSNS");
        let answer = |call, arguments| run(&code, arch, number(call), arguments);
        for (name, call) in REFUSED {
            assert_eq!(answer(*call, [0; 3]), REFUSE, "{name}");
        }
        let allow = libc::SECCOMP_RET_ALLOW;
        for call in [
            libc::SYS_read,
            libc::SYS_openat2,
            libc::SYS_io_uring_enter,
            libc::SYS_connect,
            libc::SYS_accept4,
            libc::SYS_sendfile,
            libc::SYS_futex,
            libc::SYS_exit_group,
            libc::SYS_mmap,
        ] {
            assert_eq!(answer(call, [0; 3]), allow, "{call}");
        }
        for call in [libc::SYS_socket, libc::SYS_socketpair] {
            for (family, protocol) in (0..48u64).map(|family| (family, 9)).chain([(16, 0)]) {
                // The kernel looks at the lower half alone, and so does the filter.
                let expected = match (family, protocol) {
                    (1 | 2 | 10, _) => allow,
                    // What the resolver asks for each time.
                    (16, 0) => libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
                    _ => REFUSE,
                };
                assert_eq!(
                    answer(call, [family | 1 << 40, 0, protocol]),
                    expected,
                    "family {family}"
                );
            }
        }
        let thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND;
        assert_eq!(answer(libc::SYS_clone, [thread as u64, 0, 0]), allow);
        for namespace in [libc::CLONE_NEWUSER, libc::CLONE_NEWNET] {
            assert_eq!(answer(libc::SYS_clone, [namespace as u64, 0, 0]), REFUSE);
        }
        let unknown = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        assert_eq!(answer(libc::SYS_clone3, [0; 3]), unknown);
        assert_eq!(
            answer(libc::SYS_ioctl, [0, u64::from(TERMINAL_INPUT[0]), 0]),
            REFUSE
        );
        assert_eq!(
            answer(libc::SYS_ioctl, [0, u64::from(libc::TIOCOUTQ as u32), 0]),
            allow
        );
        assert_eq!(run(&code, 0x4000_0003, 20, [0; 3]), REFUSE, "i386");
        assert_eq!(run(&code, arch, X32 | 39, [0; 3]), REFUSE, "x32");
    }

    #[test]
    fn calls_have_their_names() {
        assert_eq!(name(index(true, number(libc::SYS_bind))), "bind");
        assert_eq!(name(index(true, number(libc::SYS_ioctl))), "ioctl");
        for (native, number) in [(false, number(libc::SYS_bind)), (true, X32 | 1)] {
            assert_eq!(
                name(index(native, number)),
                "a call of another architecture"
            );
        }
    }

    /// Puts up the wall; `None`, said aloud, where the kernel can't.
    fn restrict() -> Option<Notifier> {
        let (state, notifier) = restrict_calls(false);
        eprintln!("{state}");
        if notifier.is_none() {
            skip("refusals are not counted here");
        }
        notifier
    }

    #[test]
    fn all_threads_are_refused_and_counted() {
        alone(
            module_path!(),
            "all_threads_are_refused_and_counted",
            |_| {
                let before = Arc::new(Barrier::new(2));
                let gate = Arc::clone(&before);
                let packet = || socket(AddressFamily::PACKET, SocketType::RAW, None).map(drop);
                let old = thread::spawn(move || {
                    gate.wait();
                    gate.wait();
                    (packet(), TcpListener::bind("127.0.0.1:0").map(drop))
                });
                before.wait();
                let Some(notifier) = restrict() else {
                    before.wait();
                    return;
                };
                assert_eq!((notifier.refused(), notifier.last()), (0, None));
                before.wait();
                let (made, bound) = old.join().unwrap();
                assert_eq!(made, Err(Errno::PERM));
                assert_eq!(bound.unwrap_err().raw_os_error(), Some(libc::EPERM));
                assert_eq!((notifier.refused(), notifier.last()), (2, Some("bind")));
                let new = thread::spawn(packet);
                assert_eq!(new.join().unwrap(), Err(Errno::PERM));
                assert_eq!(packet(), Err(Errno::PERM));
                assert_eq!(notifier.refused(), 4);
                assert_eq!(notifier.by_call(), [("bind", 1), ("socket", 3)]);
            },
        );
    }

    #[test]
    fn where_bind_stays_nothing_can_listen() {
        alone(
            module_path!(),
            "where_bind_stays_nothing_can_listen",
            |_| {
                let grants = Grants {
                    bind: true,
                    ..Grants::default()
                };
                let files = restrict_files(&grants);
                if let (State::Missing(why), _) = restrict_calls(true) {
                    return skip(&why);
                }
                let stream = || socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
                let bind = |socket: &OwnedFd, port: u16| {
                    let local = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
                    rustix::net::bind(socket, &local)
                };
                let bound = stream();
                assert_eq!(bind(&bound, 0), Ok(()));
                assert_eq!(rustix::net::listen(&bound, 1), Err(Errno::PERM));
                if matches!(files, State::Enforced(_)) {
                    assert_eq!(bind(&stream(), u16::MAX), Err(Errno::ACCESS));
                }
            },
        );
    }

    #[test]
    fn where_somebody_else_is_asked_calls_are_refused_uncounted() {
        alone(
            module_path!(),
            "where_somebody_else_is_asked_calls_are_refused_uncounted",
            |_| {
                let Some(first) = restrict() else { return };
                let (state, second) = restrict_calls(false);
                assert!(second.is_none());
                assert!(
                    matches!(&state, State::Enforced(detail) if detail.contains("not counted")),
                    "{state}"
                );
                let bound = TcpListener::bind("127.0.0.1:0").unwrap_err();
                assert_eq!(bound.raw_os_error(), Some(libc::EPERM));
                assert_eq!(
                    first.refused(),
                    0,
                    "the answer of the second filter goes first"
                );
            },
        );
    }

    #[test]
    fn calls_of_other_tables_are_refused() {
        alone(module_path!(), "calls_of_other_tables_are_refused", |_| {
            let Some(notifier) = restrict() else { return };
            let x32 = libc::c_long::from(X32) | libc::SYS_getpid;
            let error = raw(x32, 0).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
            assert_eq!(notifier.last(), Some("a call of another architecture"));
            #[cfg(target_arch = "x86_64")]
            if Path::new("/proc/sys/abi/vsyscall32").exists() {
                assert_eq!(
                    crate::supervisor::sys::filter::foreign_getpid(),
                    -libc::EPERM
                );
                assert_eq!(notifier.refused(), 2);
            } else {
                skip("this kernel has no 32-bit calls");
            }
            assert!(raw(libc::SYS_getpid, 0).is_ok());
        });
    }

    #[test]
    fn a_core_that_stands_goes_on() {
        alone(module_path!(), "a_core_that_stands_goes_on", |directory| {
            let selection = Selection::choose(EngineChoice::Auto).unwrap();
            let core = selection.core(Wake::new().unwrap(), None).unwrap();
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            let address = socket.local_addr().unwrap();
            if let (State::Missing(why), _) = restrict_calls(false) {
                return skip(&why);
            }
            let (doing, listener) = (core.clone(), core.own(OwnedFd::from(socket)));
            core.spawn(async move {
                let accept = Op::Accept {
                    listener,
                    one: true,
                };
                let Output::Socket(socket) = doing.once(accept).await.output else {
                    panic!("no connection")
                };
                let send = Op::Send {
                    socket,
                    data: b"served".to_vec(),
                    from: 0,
                    more: false,
                };
                assert_eq!(doing.once(send).await.result, Ok(6));
            });
            let client = thread::spawn(move || {
                let mut text = String::new();
                let client = TcpStream::connect(address).unwrap();
                client.take(6).read_to_string(&mut text).unwrap();
                text
            });
            core.run().unwrap();
            assert_eq!(core.panics(), 0);
            assert!(core.shut_down());
            assert_eq!(client.join().unwrap(), "served");
            fs::write(directory.join("log"), "files are not its business").unwrap();
            assert!(Selection::choose(EngineChoice::Uring).is_err());
        });
    }
}
