//! The API, served in this process on a loopback port.

use std::sync::{Arc, mpsc};

use hearth::{
    api::{self, registry},
    auth::{
        RootOnly,
        credentials::{AccessKey, Account, CredentialStore},
    },
    conditions::Conditions,
    config::{Config, Simulated},
    console::HostConsole,
    network::simulated::SimulatedNetwork,
    reconcile::Controllers,
    simulation,
    store::Db,
    tls::Tls,
};
use tokio::{sync::watch, task::JoinSet};

/// A served API. It goes with the value.
pub(super) struct Server {
    endpoint: String,
    key: AccessKey,
    /// Of another account.
    other: AccessKey,
    region: String,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    /// A new cloud with one host.
    pub(super) fn start() -> Self {
        Self::start_with(None)
    }

    /// The same, in TLS.
    pub(super) fn start_tls(tls: Tls) -> Self {
        Self::start_with(Some(tls))
    }

    fn start_with(tls: Option<Tls>) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        hearth::descriptors::raise_limit().expect("as hearth itself does");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let (sender, receiver) = mpsc::channel();
        let (key, other) = (AccessKey::generate(), AccessKey::generate());
        let conditions = Conditions::default();
        let config = Arc::new(Config {
            simulated: Some(Simulated {
                hosts: 1,
                conditions,
            }),
            ..Config::for_tests()
        });
        let region = config.region.clone();
        let account = |id: &str, key: &AccessKey| Account {
            id: id.to_owned(),
            name: None,
            keys: vec![key.clone()],
        };
        let credentials = CredentialStore::given(vec![
            account(&config.account_id, &key),
            account("111122223333", &other),
        ]);
        runtime.spawn(async move {
            let db = Db::in_memory().await;
            let hosts = simulation::bootstrap(&db, &config, 1).await;
            let hosts = hosts.expect("the hosts are written down");
            // The controllers run for as long as this task does.
            let (_running, shutdown) = watch::channel(false);
            let mut tasks = JoinSet::new();
            // With packets, so that networks are planned, too.
            let controllers = Controllers {
                network: Arc::new(SimulatedNetwork::default()),
                ..simulation::controllers(&db, &config, hosts, conditions)
            };
            controllers.start(&mut tasks, &shutdown);
            let console = Arc::new(HostConsole(controllers.compute));
            let cloud = api::Cloud {
                db,
                config,
                console,
                policies: Arc::new(RootOnly),
            };
            let router = api::router(cloud, credentials);
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
                .await
                .expect("a loopback port");
            let address = listener.local_addr().expect("its address");
            sender.send(address).expect("the test waits");
            match tls {
                Some(tls) => api::serve_tls(listener, &tls, router, shutdown).await,
                None => api::serve(listener, router, shutdown).await,
            }
        });
        let address = receiver.recv().expect("the server starts");
        Self {
            endpoint: format!("{scheme}://{address}"),
            key,
            other,
            region,
            _runtime: runtime,
        }
    }

    /// What a client must know of it.
    pub(super) fn told(&self) -> serde_json::Value {
        let key = |key: &AccessKey| {
            serde_json::json!({
                "access_key_id": key.access_key_id,
                "secret_access_key": key.secret_access_key,
            })
        };
        let mut told = key(&self.key);
        told["endpoint"] = self.endpoint.as_str().into();
        told["region"] = self.region.as_str().into();
        told["other"] = key(&self.other);
        told
    }
}

/// What each action looks like on the wire, read from its types.
pub(super) fn shapes() -> serde_json::Value {
    let services = registry::services();
    let services = services.iter().map(|service| {
        let actions: Vec<_> = service
            .actions
            .iter()
            .map(|action| {
                let name = action.name;
                let shape = |shape: Result<_, String>| {
                    shape.unwrap_or_else(|why| panic!("{name} has no shape: {why}"))
                };
                serde_json::json!({
                    "name": name,
                    "iam": service.iam.action(name),
                    "dry_run": service.dry_run && action.dry_run,
                    "idempotent": action.idempotent,
                    "unsupported": action.unsupported,
                    "request": shape((action.request)()),
                    "response": shape((action.response)()),
                })
            })
            .collect();
        serde_json::json!({
            "botocore": service.botocore,
            "signing_name": service.signing_name,
            "arn_name": service.iam.name,
            "version": service.version,
            "known": service.known.lines().collect::<Vec<_>>(),
            "actions": actions,
        })
    });
    serde_json::Value::Array(services.collect())
}
