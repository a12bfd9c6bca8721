//! What the configuration says of an upstream, in the words of those who decide.

use std::num::NonZeroU32;

use crate::config::model;
use crate::upstream::Share;
use crate::upstream::balance::{Picker, Policy, Sticky};
use crate::upstream::health::{BreakerLimits, EjectionLimits, PassiveLimits};
use crate::upstream::pool;
use crate::upstream::retry::BudgetLimits;
use crate::upstream::roster::Members;

/// The breaker's pauses grow up to so many times the first one.
const BREAKER_PAUSES: u32 = 12;

pub(super) fn pool_limits(settings: &model::Upstream) -> pool::Limits {
    let keepalive = settings.keepalive;
    pool::Limits {
        idle_per_server: keepalive.idle,
        idle_max: keepalive.total,
        idle_timeout: keepalive.timeout,
    }
}

pub(super) fn passive_limits(passive: &model::Passive) -> PassiveLimits {
    PassiveLimits {
        in_a_row: passive.failures.map_or(0, |failures| failures.get()),
        error_percent: passive.error_rate.map_or(0, u32::from),
        requests_min: passive.min_requests,
        window: passive.window,
    }
}

pub(super) fn ejection_limits(passive: &model::Passive) -> EjectionLimits {
    EjectionLimits {
        first: passive.eject,
        longest: passive.eject_max,
        percent_max: u32::from(passive.share_max),
    }
}

pub(super) fn breaker_limits(breaker: &model::Breaker) -> BreakerLimits {
    BreakerLimits {
        error_percent: u32::from(breaker.error_rate),
        requests_min: breaker.min_requests,
        window: breaker.window,
        pause_first: breaker.open,
        pause_longest: breaker.open.saturating_mul(BREAKER_PAUSES),
        trials: breaker.probes,
    }
}

/// This core's part of the budget: what requests earn is of this core already, what time brings is
/// divided.
pub(super) fn budget_limits(settings: &model::Upstream, share: Share) -> BudgetLimits {
    let budget = settings.retry_budget;
    let cores = u32::try_from(share.of).unwrap_or(u32::MAX).max(1);
    BudgetLimits {
        percent: u32::from(budget.share),
        per_second_min: budget.per_second.div_ceil(cores),
    }
}

pub(super) fn picker(settings: &model::Upstream, members: &Members, seed: u64) -> Picker {
    let spread = |spread| match spread {
        model::Spread::RoundRobin => Policy::RoundRobin,
        model::Spread::LeastConnections => Policy::LeastConnections,
        model::Spread::PowerOfTwo => Policy::PowerOfTwo,
        model::Spread::Random => Policy::Random,
    };
    let policy = match &settings.balance {
        model::Balance::Spread(by) => spread(*by),
        model::Balance::Hash { load_max, .. } => Policy::Hash {
            load_percent_max: load_max.and_then(|max| NonZeroU32::new(max.into())),
        },
        model::Balance::Sticky(sticky) => spread(sticky.otherwise),
    };
    let picker = Picker::new(policy, settings.slow_start, seed);
    let model::Balance::Sticky(sticky) = &settings.balance else {
        return picker;
    };
    let ids = members.list.iter().map(|member| member.id);
    match Sticky::new(sticky.secret.as_bytes(), &settings.name, ids) {
        Ok(sticky) => picker.with_sticky(sticky),
        // The configuration has refused a secret that is too short.
        Err(error) => {
            tracing::error!(upstream = &*settings.name, %error, "no client is bound to a server");
            picker
        }
    }
}
