//! Tables of what may be repeated, and histories under which budget and tries must hold.

use proptest::prelude::*;

use super::*;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const LIMITS: BudgetLimits = BudgetLimits {
    percent: 20,
    per_second_min: 1,
};

fn policy() -> RetryPolicy {
    RetryPolicy {
        tries_max: 3,
        time_max: Some(10 * S),
        statuses: StatusSet::new([(Status(502), Status(503))]),
        repeats_any_method: false,
    }
}

fn first(failure: Failure, request: Request, policy: &RetryPolicy) -> Verdict {
    let now = Instant::now();
    let mut budget = RetryBudget::new(LIMITS, now);
    Tries::begin(now).failed(failure, request, policy, &mut budget, now)
}

const GET: Request = Request {
    is_idempotent: true,
    is_replayable: true,
};
const POST: Request = Request {
    is_idempotent: false,
    is_replayable: true,
};

#[test]
fn how_far_it_came_and_the_method_decide() {
    use Failure as F;
    use Refusal::{NotIdempotent, ResponseBegun, StatusNotChosen, TimedOut};
    use Verdict::{Afresh, Elsewhere, GiveUp};
    for (failure, get, post) in [
        (F::Connect, Elsewhere, Elsewhere),
        (F::Stale { sent: false }, Afresh, Afresh),
        (F::Stale { sent: true }, Afresh, GiveUp(NotIdempotent)),
        (F::NoResponse { sent: false }, Elsewhere, Elsewhere),
        (
            F::NoResponse { sent: true },
            Elsewhere,
            GiveUp(NotIdempotent),
        ),
        (F::HeadTimeout, GiveUp(TimedOut), GiveUp(TimedOut)),
        (F::Status(503), Elsewhere, GiveUp(NotIdempotent)),
        (
            F::Status(500),
            GiveUp(StatusNotChosen),
            GiveUp(StatusNotChosen),
        ),
        (F::Response, GiveUp(ResponseBegun), GiveUp(ResponseBegun)),
    ] {
        assert_eq!(first(failure, GET, &policy()), get, "GET, {failure:?}");
        assert_eq!(first(failure, POST, &policy()), post, "POST, {failure:?}");
    }
}

#[test]
fn a_route_may_say_that_its_posts_are_repeatable() {
    let mut policy = policy();
    policy.repeats_any_method = true;
    let sent = Failure::NoResponse { sent: true };
    assert_eq!(first(sent, POST, &policy), Verdict::Elsewhere);
    // That doesn't take back what the client has seen.
    let begun = Verdict::GiveUp(Refusal::ResponseBegun);
    assert_eq!(first(Failure::Response, POST, &policy), begun);
}

#[test]
fn a_body_that_is_gone_ends_it() {
    for is_idempotent in [true, false] {
        let request = Request {
            is_idempotent,
            is_replayable: false,
        };
        let spent = Verdict::GiveUp(Refusal::BodySpent);
        assert_eq!(first(Failure::Connect, request, &policy()), spent);
    }
}

#[test]
fn idempotent_is_what_the_rfc_says() {
    for (method, expected) in [
        ("GET", true),
        ("HEAD", true),
        ("OPTIONS", true),
        ("TRACE", true),
        ("PUT", true),
        ("DELETE", true),
        ("POST", false),
        ("PATCH", false),
        ("CONNECT", false),
        ("get", false),
        ("PROPFIND", false),
    ] {
        assert_eq!(
            is_idempotent(Method::from_token(method)),
            expected,
            "{method}"
        );
    }
}

#[test]
fn tries_and_time_end() {
    let now = Instant::now();
    let (mut tries, mut budget) = (Tries::begin(now), RetryBudget::new(LIMITS, now));
    let mut fail = |at| tries.failed(Failure::Connect, GET, &policy(), &mut budget, at);
    assert_eq!(fail(now), Verdict::Elsewhere);
    assert_eq!(fail(now + 10 * S), Verdict::GiveUp(Refusal::TimeSpent));
    assert_eq!(fail(now + 9 * S), Verdict::Elsewhere);
    assert_eq!(fail(now + 9 * S), Verdict::GiveUp(Refusal::TriesSpent));
    assert_eq!(tries.made(), 3);
}

#[test]
fn stale_connections_cost_nothing_but_not_forever() {
    let now = Instant::now();
    let (mut tries, mut budget) = (Tries::begin(now), RetryBudget::new(LIMITS, now));
    let mut policy = policy();
    policy.tries_max = 1;
    let stale = Failure::Stale { sent: false };
    let before = budget.left(now);
    for _ in 0..STALE_MAX {
        let verdict = tries.failed(stale, POST, &policy, &mut budget, now);
        assert_eq!(verdict, Verdict::Afresh);
    }
    assert_eq!((budget.left(now), tries.made()), (before, 1));
    let verdict = tries.failed(stale, POST, &policy, &mut budget, now);
    assert_eq!(verdict, Verdict::GiveUp(Refusal::TriesSpent));
}

#[test]
fn the_budget_follows_the_requests_and_forgets() {
    let now = Instant::now();
    let mut budget = RetryBudget::new(LIMITS, now);
    let spend = |budget: &mut RetryBudget, at| (0..10_000).filter(|_| budget.take(at)).count();
    assert_eq!(spend(&mut budget, now), 10);
    for _ in 0..1_000 {
        budget.request(now);
    }
    assert_eq!(spend(&mut budget, now), 200);
    assert_eq!(spend(&mut budget, now + 3 * S), 3);
    for _ in 0..1_000 {
        budget.request(now + 3 * S);
    }
    // Nine tenths to the tenth, and ten of time.
    assert_eq!(budget.left(now + 13 * S), 10 + 69);
    assert_eq!(
        spend(&mut budget, now + 3_600 * S),
        10,
        "an hour ago is forgotten"
    );
}

#[test]
fn a_spent_budget_is_said() {
    let now = Instant::now();
    let mut budget = RetryBudget::new(LIMITS, now);
    while budget.take(now) {}
    let verdict = Tries::begin(now).failed(Failure::Connect, GET, &policy(), &mut budget, now);
    assert_eq!(verdict, Verdict::GiveUp(Refusal::BudgetSpent));
}

fn failure() -> impl Strategy<Value = Failure> {
    prop_oneof![
        3 => Just(Failure::Connect),
        1 => any::<bool>().prop_map(|sent| Failure::Stale { sent }),
        3 => any::<bool>().prop_map(|sent| Failure::NoResponse { sent }),
        1 => Just(Failure::HeadTimeout),
        1 => (500..505_u16).prop_map(Failure::Status),
        1 => Just(Failure::Response),
    ]
}

proptest! {
    #[test]
    fn the_budget_holds_over_any_history(
        percent in 0..101_u32,
        per_second_min in 0..20_u32,
        steps in prop::collection::vec((0..4_u8, 0..3_000_u32), 1..2_000),
    ) {
        let begin = Instant::now();
        let limits = BudgetLimits { percent, per_second_min };
        let (mut budget, mut now) = (RetryBudget::new(limits, begin), begin);
        let (mut requests, mut retries) = (0_u32, 0_u32);
        for (kind, millis) in steps {
            match kind {
                0 => now += millis * MS,
                1 => {
                    budget.request(now);
                    requests += 1;
                }
                _ => retries += u32::from(budget.take(now)),
            }
            let seconds = (now - begin).as_secs_f64();
            let capacity = f64::from((10 * per_second_min).max(10));
            let allowed = f64::from(requests * percent) / 100.0
                + seconds * f64::from(per_second_min) + capacity;
            prop_assert!(f64::from(retries) <= allowed + 1e-6, "{} > {}", retries, allowed);
        }
    }

    #[test]
    fn no_request_acts_twice_or_goes_on_forever(
        is_idempotent: bool,
        is_replayable: bool,
        tries_max: u8,
        failures in prop::collection::vec(failure(), 60),
    ) {
        let now = Instant::now();
        let limits = BudgetLimits { percent: 100, per_second_min: 100 };
        let (mut tries, mut budget) = (Tries::begin(now), RetryBudget::new(limits, now));
        let policy = RetryPolicy { tries_max, ..policy() };
        let request = Request { is_idempotent, is_replayable };
        let mut sends = 1_u32;
        for failure in failures {
            let verdict = tries.failed(failure, request, &policy, &mut budget, now);
            if matches!(verdict, Verdict::GiveUp(_)) {
                break;
            }
            let acted = matches!(
                failure,
                Failure::Stale { sent: true } | Failure::NoResponse { sent: true } | Failure::Status(_)
            );
            prop_assert!(is_replayable, "without its body");
            prop_assert!(is_idempotent || !acted, "{:?} was repeated", failure);
            sends += 1;
        }
        let most = tries_max.clamp(1, TRIES_MAX) + STALE_MAX;
        prop_assert!(sends <= u32::from(most), "{} times", sends);
    }
}

#[test]
fn a_budget_tells_what_it_has_done_and_what_is_left() {
    let now = Instant::now();
    let limits = BudgetLimits {
        percent: 100,
        per_second_min: 0,
    };
    let mut budget = RetryBudget::new(limits, now);
    let left = budget.account(now).left;
    assert_eq!(left, CAPACITY_MIN);
    budget.request(now);
    let granted = (0..left + 3).filter(|_| budget.take(now)).count() as u64;
    let expected = BudgetAccount {
        granted: left + 1,
        refused: 2,
        left: 0,
    };
    assert_eq!((granted, budget.account(now)), (left + 1, expected));
}
