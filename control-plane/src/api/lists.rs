//! Where large lists are made: beside the runtime, few at a time.
//!
//! A list of thousands is milliseconds of work without a pause, which on the
//! runtime's own threads everybody's requests would wait for. It is made on a thread
//! of its own, which the kernel gives no more than its part of a processor; an account
//! that asks for many at once waits for itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use tokio::{runtime::Handle, sync::Semaphore, task};

use super::{ApiError, wire::Form};
use crate::store::Scoped;

/// Of so many records a list is made where its request is: a few milliseconds at most,
/// with as many tags as they may have.
const INLINE_LIMIT: usize = 20;
/// The longest there is, in bytes: twice what ten thousand instances take that have few
/// tags.
pub(super) const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How many are made at once where there are more processors: each may have a hundred
/// MiB in memory.
const MOST_AT_ONCE: usize = 8;

/// The lists that are being made.
pub(super) struct Lists {
    all: Arc<Semaphore>,
    /// How many of one account.
    each: usize,
    /// Of every account that has asked for one: there are as many as have been made.
    accounts: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Default for Lists {
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self::new(processors.clamp(2, MOST_AT_ONCE))
    }
}

impl Lists {
    fn new(at_once: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(at_once)),
            each: at_once.div_ceil(2),
            accounts: Mutex::default(),
        }
    }

    /// What `work` comes to, on a thread of its own once it is this account's turn.
    ///
    /// # Errors
    /// `InternalError` when it panics, or when the runtime ends.
    pub(super) async fn make<T: Send + 'static>(
        &self,
        account: &str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ApiError> {
        // Its own turn first: who waits there takes no one else's.
        let own = self.account(account).acquire_owned().await;
        let all = Arc::clone(&self.all).acquire_owned().await;
        let turn = (
            own.map_err(ApiError::internal)?,
            all.map_err(ApiError::internal)?,
        );
        let runtime = Handle::current();
        task::spawn_blocking(move || {
            // Held to the end of the work, also when nobody waits for it any more.
            let _turn = turn;
            runtime.block_on(work)
        })
        .await
        .map_err(ApiError::internal)
    }

    fn account(&self, account: &str) -> Arc<Semaphore> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let semaphore = accounts
            .entry(account.to_owned())
            .or_insert_with(|| Arc::new(Semaphore::new(self.each)));
        Arc::clone(semaphore)
    }
}

/// Whether an action of this name answers with a list, by EC2's naming.
pub(super) fn is_list(action: &str) -> bool {
    action.starts_with("Describe")
}

/// Whether the answer is long of an action that makes what it answers with: it says how
/// many, whether it makes them now or did at an earlier call with the same token.
pub(super) fn makes_many(form: &Form) -> bool {
    let fields = form.fields();
    let mut counts = fields.iter().filter(|(name, _)| name == "MaxCount");
    counts.any(|(_, count)| {
        count
            .parse::<usize>()
            .map_or(true, |count| count > INLINE_LIMIT)
    })
}

/// Whether a list is little work: it names few, by whatever of theirs, or the account has
/// few of anything; and no filter has wildcards, which may compare much of each.
pub(super) fn is_short(view: Scoped<'_>, form: &Form) -> bool {
    let mut named = 0;
    for (name, value) in form.fields() {
        let (name, rest) = name.split_once('.').unwrap_or((&name, ""));
        if name == "Filter" && value.contains(['*', '?']) {
            return false;
        }
        // `InstanceId.1`, `GroupName.1`: each adds to the answer. An owner is a filter.
        let selects = ["Filter", "Owner", "ExecutableBy"].contains(&name);
        if !selects && rest.parse::<usize>().is_ok() {
            named += 1;
        }
    }
    (1..=INLINE_LIMIT).contains(&named) || view.has_at_most(INLINE_LIMIT)
}

#[cfg(test)]
mod tests {
    use std::{future::pending, task::Poll};

    use tokio::sync::oneshot;

    use super::*;
    use crate::{
        api::{
            Action, Cloud, Ctx, Targets,
            console::NoConsole,
            ec2,
            registry::{Call, Service, action},
        },
        auth::{Caller, RootOnly},
        config::Config,
        model::{Arn, Scope, samples},
        store::{Change, Db, View},
    };

    #[tokio::test]
    async fn an_account_waits_for_itself_and_the_runtime_for_none() {
        let lists = Arc::new(Lists::new(2));
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let (began, begun) = oneshot::channel();
        let of = |account: &'static str, lists: &Arc<Lists>| {
            let lists = Arc::clone(lists);
            async move { lists.make(account, async move { account }).await.unwrap() }
        };
        let long = tokio::spawn({
            let lists = Arc::clone(&lists);
            async move {
                let work = async move {
                    began.send(()).unwrap();
                    // As a list does, without a pause.
                    wait.recv().unwrap();
                };
                lists.make("a", work).await.unwrap();
            }
        });
        // This runtime has one thread, and it goes on.
        begun.await.unwrap();
        let mut next = tokio::spawn(of("a", &lists));
        assert_eq!(of("b", &lists).await, "b");
        assert!(!next.is_finished() && lists.all.available_permits() == 1);
        end.send(()).unwrap();
        long.await.unwrap();
        assert_eq!((&mut next).await.unwrap(), "a");
        assert_eq!(lists.all.available_permits(), 2);
    }

    /// A call on what the samples' account has.
    fn of(db: &Db, lists: &Arc<Lists>, form: &str) -> Call {
        let scope = samples::scope();
        let caller = Caller {
            arn: Arn::root(&scope.account),
            user_id: scope.account.clone(),
            account: scope.account,
            region: scope.region,
            access_key_id: "AKIATEST".into(),
        };
        Call {
            cloud: Cloud {
                db: db.clone(),
                config: Arc::new(Config::for_tests()),
                console: Arc::new(NoConsole),
                policies: Arc::new(RootOnly),
            },
            caller,
            request_id: "req".into(),
            now: jiff::Timestamp::UNIX_EPOCH,
            form: Form::parse(form.as_bytes()).unwrap(),
            lists: Arc::clone(lists),
        }
    }

    /// An action that answers with what it makes: whether it does so beside its caller.
    struct Making;

    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase", deny_unknown_fields)]
    struct MakingRequest {
        #[serde(rename = "MaxCount")]
        _max_count: u32,
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    struct MakingResponse {
        beside: bool,
    }

    impl Action for Making {
        const NAME: &'static str = "Making";
        type Request = MakingRequest;
        type Response = MakingResponse;

        fn targets(_: &MakingRequest, to: &mut Targets<'_>) {
            to.any();
        }

        async fn handle(ctx: &Ctx, _: MakingRequest) -> Result<MakingResponse, ApiError> {
            let handling = thread::current().id();
            let beside = move || thread::current().id() != handling;
            let answer = ctx.answer(move |_| Ok(MakingResponse { beside: beside() }));
            answer.await
        }
    }

    #[tokio::test]
    async fn what_makes_many_answers_with_them_from_beside_the_runtime() {
        let (db, lists) = (Db::in_memory().await, Arc::new(Lists::new(2)));
        let service = Service {
            actions: vec![action::<Making>()],
            ..ec2::service()
        };
        let making = service.find("Making").unwrap();
        for (count, beside) in [(20, false), (21, true)] {
            let call = of(&db, &lists, &format!("MaxCount={count}"));
            let answered = making.call(&service, call).await.unwrap();
            let expected = format!("<beside>{beside}</beside>");
            assert!(answered.body.contains(&expected), "{count}");
        }
    }

    #[tokio::test]
    async fn a_long_list_has_its_turn_and_a_short_one_waits_for_none() {
        let db = Db::in_memory().await;
        let scope = samples::scope();
        let put = |_: Scoped<'_>, change: &mut Change<'_>| {
            (0..101).for_each(|n| change.create(&samples::instance(n)));
            Ok::<_, ApiError>(())
        };
        db.transact_at(&scope, put).await.unwrap();
        let lists = Arc::new(Lists::new(2));
        let ec2 = ec2::service();
        let ask = |action: &str, form: &str| {
            let answer = ec2.find(action).unwrap().call(&ec2, of(&db, &lists, form));
            Box::pin(async { answer.await.map(|answered| answered.body) })
        };
        let turn = lists.account(&scope.account).acquire_owned().await;
        let mut long = ask("DescribeInstances", "");
        let first = std::future::poll_fn(|cx| Poll::Ready(long.as_mut().poll(cx).is_pending()));
        assert!(first.await);
        let one = format!("InstanceId.1={}", samples::instance(7).id);
        let short = ask("DescribeInstances", &one).await.unwrap();
        let items = |answer: &str| answer.matches("<instanceId>").count();
        assert_eq!(items(&short), 1);
        drop(turn);
        assert_eq!(items(&long.await.unwrap()), 101);
    }

    #[tokio::test]
    async fn a_cancelled_or_panicking_list_frees_its_turn() {
        let lists = Arc::new(Lists::new(2));
        let turn = lists.account("a").acquire_owned().await.unwrap();
        let waiting = lists.make("a", pending::<()>());
        let limit = std::time::Duration::from_millis(1);
        assert!(tokio::time::timeout(limit, waiting).await.is_err());
        drop(turn);
        assert_eq!(lists.make("a", async { 1 }).await.unwrap(), 1);
        let panics = lists.make("a", async { panic!("a defect") });
        assert_eq!(panics.await.unwrap_err().code, "InternalError");
        assert_eq!(lists.make("a", async { 2 }).await.unwrap(), 2);
    }

    #[test]
    fn who_makes_many_says_so() {
        for (form, is) in [
            ("MinCount=1&MaxCount=20", false),
            ("MinCount=1&MaxCount=21", true),
            ("MaxCount=9999999999999999999999", true),
            ("GroupName=MaxCount", false),
        ] {
            assert_eq!(
                makes_many(&Form::parse(form.as_bytes()).unwrap()),
                is,
                "{form}"
            );
        }
    }

    #[test]
    fn what_names_few_is_short_and_so_is_what_has_few() {
        let scope = samples::scope();
        let with =
            |count: u8| (0..count).fold(View::default(), |v, n| v.with(samples::instance(n)));
        let (few, many) = (with(20), with(21));
        let short = |view: &View, form: &str| {
            is_short(view.at(&scope), &Form::parse(form.as_bytes()).unwrap())
        };
        assert!(short(&few, "") && !short(&many, ""));
        // Another account's are none of its own.
        let other = Scope::new("999999999999", &scope.region);
        assert!(is_short(many.at(&other), &Form::default()));
        for (form, is) in [
            ("InstanceId.1=i-1&InstanceId.2=i-2", true),
            (
                "InstanceId.1=i-1&Filter.1.Name=tag:a&Filter.1.Value.1=b",
                true,
            ),
            (
                "InstanceId.1=i-1&Filter.1.Name=tag:a&Filter.1.Value.1=b*",
                false,
            ),
            ("Filter.1.Name=vpc-id&Filter.1.Value.1=vpc-1", false),
            ("MaxResults=5&NextToken=Id", false),
            ("InstanceId.1=i-1&GroupName.1=web", true),
            ("Owner.1=self", false),
        ] {
            assert_eq!(short(&many, form), is, "{form}");
        }
        for many_of in ["VolumeId", "GroupName"] {
            let named = (1..=20).map(|n| format!("{many_of}.{n}=x{n}"));
            let named = named.chain(["GroupId.1=sg-1".into()]);
            assert!(!short(&many, &named.collect::<Vec<_>>().join("&")));
        }
        assert!(!short(&few, "Filter.1.Name=tag:a&Filter.1.Value.1=?"));
    }
}
