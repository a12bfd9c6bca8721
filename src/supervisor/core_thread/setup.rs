//! What a core is made from, and what its service has to be.

use std::rc::Rc;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};

use super::{Message, Reporter};
use crate::handlers::secured::SecuredSites;
use crate::http::session::{Registry, Service};
use crate::net::listener::Listening;
use crate::net::spread::Seat;
use crate::observability::access_log::Format;
use crate::observability::core_log::CoreLog;
use crate::observability::sink::SinkHandle;
use crate::runtime::affinity::CpuId;
use crate::runtime::budget::Ledger;
use crate::runtime::direct::pressure::MemoryFiles;
use crate::runtime::engine::caps::Selection;
use crate::runtime::executor::Core;
use crate::runtime::heartbeat::Heartbeat;
use crate::runtime::mailbox::{Receiver, Wake};
use crate::runtime::offload::HelperPort;
use crate::runtime::tuning::Tuning;
use crate::supervisor::limits::{fixed_per_core, may_register};
use crate::supervisor::swap::Swap;
use crate::upstream::{Share, group};

/// Everything that a core is made from.
pub(in crate::supervisor) struct Setup {
    /// The CPU it is pinned to.
    pub(in crate::supervisor) cpu: Option<CpuId>,
    /// Its engine.
    pub(in crate::supervisor) selection: Selection,
    /// Whether it may run on epoll when its ring can't be made.
    pub(in crate::supervisor) may_degrade: bool,
    /// What other threads wake it by.
    pub(in crate::supervisor) wake: Arc<Wake>,
    /// How many cores there are.
    pub(in crate::supervisor) cores: usize,
    /// Its way to the helpers, and another one for a second attempt.
    pub(in crate::supervisor) helpers: [Option<HelperPort>; 2],
    /// Where its messages come from.
    pub(in crate::supervisor) mailbox: Receiver<Message>,
    /// The first configuration.
    pub(in crate::supervisor) first: Arc<Swap>,
    /// Most connections that it may hold.
    pub(in crate::supervisor) connections_max: usize,
    /// Most files that it may keep open.
    pub(in crate::supervisor) files_max: usize,
    /// What it has for cold files.
    pub(in crate::supervisor) cold: ColdMeans,
    /// The kinds of keys by which the kernel may encrypt.
    pub(in crate::supervisor) kernel_tls: u8,
    /// The access log.
    pub(in crate::supervisor) log: Option<(Format, SinkHandle)>,
    /// What others see of its turns.
    pub(in crate::supervisor) heartbeat: Arc<Heartbeat>,
    /// The memory of the process.
    pub(in crate::supervisor) ledger: Arc<Ledger>,
    /// The numbers that depend on the machine.
    pub(in crate::supervisor) tuning: Tuning,
    /// Its place among the others; `None` for one that is alone.
    pub(in crate::supervisor) seat: Option<Seat>,
    /// Where its reports go.
    pub(in crate::supervisor) reporter: Reporter,
}

/// What a core has for files that aren't in memory.
#[derive(Clone)]
pub(in crate::supervisor) struct ColdMeans {
    /// Most fixed buffers that it may have.
    pub(super) fixed_max: u16,
    /// They aren't registered.
    pub(super) plain: bool,
    /// Where it looks whether memory is short. Opened early: a confined worker can't.
    pub(super) memory: Arc<MemoryFiles>,
}

impl ColdMeans {
    /// For each of so many cores, those of other processes included.
    pub(in crate::supervisor) fn of(memory_limit: Option<u64>, cores: usize) -> Self {
        let fixed_max = fixed_per_core(memory_limit, cores);
        let memlock = getrlimit(Resource::Memlock).current;
        Self {
            fixed_max,
            plain: !may_register(memlock, cores, fixed_max),
            memory: Arc::new(MemoryFiles::open()),
        }
    }
}

/// What the service of a core is made from.
pub(in crate::supervisor) struct Parts<'p> {
    /// The core.
    pub(in crate::supervisor) core: &'p Core,
    /// What other threads wake it by.
    pub(in crate::supervisor) wake: Arc<Wake>,
    /// Which one of how many it is.
    pub(in crate::supervisor) share: Share,
    /// The first configuration.
    pub(in crate::supervisor) first: &'p Swap,
    /// Its sockets, each with its place in the model.
    pub(in crate::supervisor) listeners: &'p [(Rc<Listening>, usize)],
    /// The connections of the core.
    pub(in crate::supervisor) registry: Rc<Registry>,
    /// Its access log.
    pub(in crate::supervisor) log: Option<Rc<CoreLog>>,
    /// Most files that it may keep open.
    pub(in crate::supervisor) files_max: usize,
}

/// What answers the requests of a core, and can take another configuration while it does.
pub(in crate::supervisor) trait Serves: Service {
    /// Answers by this configuration from the next request on. Its sockets come with their places in
    /// the model.
    fn swap(&self, swap: &Swap, listeners: &[(Rc<Listening>, usize)]);

    /// Makes connections by other certificates from now on, if the configuration of this number is the
    /// one in force.
    fn secure(&self, epoch: u64, secured: &Arc<SecuredSites>);

    /// The configurations that are in use, with the requests that each answers.
    fn epochs(&self) -> Vec<(u64, usize)>;

    /// What is known of each upstream of the current configuration.
    fn upstreams(&self) -> Vec<group::Account>;

    /// Closes idle connections to servers that take nothing any more.
    fn tidy(&self);

    /// Lets go of what is only kept for speed.
    fn shrink(&self);

    /// Bytes that its caches hold.
    fn cached(&self) -> usize;

    /// Lets go of what would outlive the last connection.
    fn close(&self);
}

/// Makes what answers the requests of a core.
pub(in crate::supervisor) trait MakeService<S>:
    Fn(Parts<'_>) -> Rc<S> + Copy + Send + 'static
{
}

impl<S, F> MakeService<S> for F where F: Fn(Parts<'_>) -> Rc<S> + Copy + Send + 'static {}
