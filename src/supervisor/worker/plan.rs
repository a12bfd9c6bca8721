//! What a worker will run with: its engine, its CPUs, its limits and the numbers of this machine.

use std::os::fd::OwnedFd;

use super::{StartError, engine};
use crate::config::model::{KernelTls, Model, Server, Workers};
use crate::config::tuning::{self, InForce};
use crate::net::tls::kernel;
use crate::runtime::affinity::{self, CpuId, Cpus, TooFewCpus, Wanted};
use crate::runtime::budget::open_statm;
use crate::runtime::engine::caps::{EngineKind, Selection};
use crate::runtime::kernel_tls::try_kernel_tls;
use crate::runtime::memory;
use crate::supervisor::core_thread::ColdMeans;
use crate::supervisor::limits::{Budget, Means, MemoryLimit, raise_descriptors};

/// What a worker will run with, found out before it has threads and before it is confined.
pub(in crate::supervisor) struct WorkerPlan {
    pub(super) selection: Selection,
    pub(super) cpus: Vec<Option<CpuId>>,
    /// The CPU of each core's poller; empty without.
    pub(super) pollers: Vec<CpuId>,
    /// What was measured on this machine.
    pub(super) tuning: InForce,
    pub(super) budget: Budget,
    pub(super) memory: MemoryLimit,
    /// What tells how large the process is, opened before it is confined.
    pub(super) statm: Option<OwnedFd>,
    pub(super) cold: ColdMeans,
    /// The kinds of keys by which the kernel encrypts, or why it does not.
    pub(super) kernel_tls: Result<u8, String>,
}

impl WorkerPlan {
    /// Where the numbers that depend on the machine come from: a file, or `defaults`.
    pub(in crate::supervisor) fn tuning_origin(&self) -> String {
        self.tuning.origin()
    }

    /// Which records the kernel makes, or why none, for people.
    pub(in crate::supervisor) fn kernel_tls_means(&self) -> String {
        match &self.kernel_tls {
            Ok(kinds) => format!("on ({})", kernel::names(*kinds).join(", ")),
            Err(why) => format!("off: {why}"),
        }
    }

    /// Chooses the engine, the CPUs and the limits. `restricted`: rings get no more opcodes than the
    /// engine uses.
    ///
    /// # Errors
    /// When io_uring, or the kernel's TLS, was demanded and can't be had.
    pub(in crate::supervisor) fn of(
        model: &Model,
        listeners: usize,
        restricted: bool,
    ) -> Result<Self, StartError> {
        let server = &model.server;
        let choice = engine(server.engine);
        let choose = |poller| {
            Selection::choose_polled(choice, restricted, poller)
                .map_err(|why| StartError::other(why, ""))
        };
        let cpus = Cpus::of_this_machine();
        let wanted = wanted(server);
        let (selection, plan) = if wanted.pollers {
            let plan = affinity::plan(wanted, &cpus).map_err(|few| too_few_cpus(&few))?;
            let selection = choose(plan.pollers.first().copied())?;
            if selection.kind() == EngineKind::Epoll {
                let reason = &selection.reason;
                tracing::warn!(reason, "sqpoll has no effect: the engine is epoll");
            }
            (selection, plan)
        } else {
            let plan = affinity::plan(wanted, &cpus).map_err(|few| too_few_cpus(&few))?;
            (choose(None)?, plan)
        };
        // Several processes share what the configuration allows, and not what the kernel allows each.
        let processes = server.processes.get();
        let memory = MemoryLimit::of(server.memory_limit, processes, memory::available());
        let budget = Budget::of(Means {
            cores: plan.cores.len(),
            listeners,
            descriptors: raise_descriptors(),
            memory: server.memory_limit.map(|bytes| bytes / processes as u64),
            max_conns: server.max_conns.map(|all| (all.get() / processes).max(1)),
        });
        if let Some(warning) = budget.warning(plan.cores.len()) {
            tracing::warn!("{warning}");
        }
        let tuning = tuning::in_force();
        for refused in &tuning.refused {
            tracing::warn!("{refused}");
        }
        let kernel_tls = kernel_tls(server.ktls)?;
        tracing::info!(
            cores = plan.reason,
            tuning = tuning.origin(),
            connections_per_core = budget.connections_per_core,
            memory = memory.bytes,
            of = memory.source,
            "starting"
        );
        Ok(Self {
            selection,
            cold: ColdMeans::of(server.memory_limit, plan.cores.len() * processes),
            cpus: plan.cores,
            pollers: plan.pollers,
            tuning,
            budget,
            memory,
            statm: open_statm(),
            kernel_tls,
        })
    }
}

/// Tries which records the kernel can make.
fn kernel_tls(wanted: KernelTls) -> Result<Result<u8, String>, StartError> {
    let tried = match wanted {
        KernelTls::Off => return Ok(Err("switched off".to_owned())),
        KernelTls::Auto | KernelTls::On => {
            let samples = kernel::Keys::samples();
            try_kernel_tls(samples.iter().map(kernel::Keys::bytes))
        }
    };
    match tried {
        Err(why) if wanted == KernelTls::On => Err(StartError::other(
            format!("ktls = \"on\" can't be had: {why}"),
            "load the module (`modprobe tls`), take a kernel with CONFIG_TLS, or write \
             ktls = \"auto\"",
        )),
        tried => Ok(tried.map_err(|why| why.to_string())),
    }
}

/// What the configuration asks of the CPUs.
fn wanted(server: &Server) -> Wanted {
    Wanted {
        workers: match server.workers {
            Workers::Auto => None,
            Workers::Count(count) => Some(count.get()),
        },
        pin: server.pin,
        pollers: server.sqpoll,
    }
}

/// How many sockets an address gets: one for each core of a worker with `reuseport`, where there are
/// several; else `None`. Several processes have them in common, so that one that dies leaves no client
/// waiting.
pub(in crate::supervisor) fn parts_of(server: &Server) -> Option<usize> {
    let plan = server.reuseport.then(Cpus::of_this_machine);
    // A plan that can't be made is told of when the worker starts.
    let plan = affinity::plan(wanted(server), &plan?).ok()?;
    Some(plan.cores.len()).filter(|cores| *cores > 1)
}

fn too_few_cpus(few: &TooFewCpus) -> StartError {
    let help = match few.workers_max {
        Some(max) => format!("set `workers` to at most {max}, or remove `sqpoll`"),
        None => "remove `sqpoll`, or let the process use two CPUs or more".to_owned(),
    };
    let what = format!(
        "sqpoll takes two CPUs for each thread, one of them for its poller, and {}",
        few.there
    );
    StartError::other(what, help)
}
