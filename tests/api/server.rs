//! The API, served in this process on a loopback port.

use std::sync::{Arc, mpsc};

use hearth::{
    api::{self, registry},
    auth::credentials::{AccessKey, Account, CredentialStore},
    bootstrap::{Machine, bootstrap},
    compute::fake::FakeCompute,
    config::Config,
    model::{BootMethod, Image, ImageId, Manifest},
    network::fake::FakeNetwork,
    reconcile::{
        Slots,
        cluster::PlacementController,
        host::{NetworkController, ReachabilityController, VolumeController},
        instance::InstanceController,
        run, system_clock,
    },
    storage::fake::FakeStorage,
    store::Db,
    tls::Tls,
};
use tokio::sync::watch;

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
    /// A new cloud with its default VPC and one image.
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
        let config = Arc::new(Config::for_tests());
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
            let machine = Machine {
                cpus: 8,
                memory_mib: 16384,
                disk_gib: 1000,
            };
            bootstrap(&db, &config, machine).await.expect("bootstrap");
            let image = image(&config.account_id);
            db.transact(|_, change| {
                change.put(&image);
                Ok::<_, api::ApiError>(())
            })
            .await
            .expect("the image");
            // The controllers run for as long as this task does.
            let (_running, shutdown) = watch::channel(false);
            start(&config, &db, &shutdown);
            let console = Arc::new(api::console::NoConsole);
            let cloud = api::Cloud {
                db,
                config,
                console,
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

/// All that makes desired state true, on a host in memory.
fn start(config: &Arc<Config>, db: &Db, shutdown: &watch::Receiver<bool>) {
    let compute = Arc::new(FakeCompute::default());
    let storage = Arc::new(FakeStorage::default());
    let taps = Arc::new(FakeNetwork::default());
    let host = &config.host_id;
    let slots = Slots::wide(64);
    let network = Arc::new(NetworkController::new(
        db.clone(),
        host.clone(),
        taps.clone(),
        slots.clone(),
    ));
    let placement = PlacementController {
        db: db.clone(),
        clock: system_clock(),
    };
    let volumes = VolumeController {
        db: db.clone(),
        host: host.clone(),
        storage: storage.clone(),
        slots: slots.clone(),
    };
    let reachability =
        ReachabilityController::new(db.clone(), host.clone(), taps.clone(), system_clock());
    let instances = InstanceController::new(
        db.clone(),
        config.clone(),
        compute,
        storage,
        network.clone(),
        slots,
        system_clock(),
    );
    tokio::spawn(run(Arc::new(placement), db.clone(), shutdown.clone()));
    tokio::spawn(run(Arc::new(volumes), db.clone(), shutdown.clone()));
    tokio::spawn(run(Arc::new(reachability), db.clone(), shutdown.clone()));
    tokio::spawn(run(network, db.clone(), shutdown.clone()));
    tokio::spawn(run(Arc::new(instances), db.clone(), shutdown.clone()));
}

fn image(account: &str) -> Image {
    Image {
        id: ImageId::from_random(1),
        scope: hearth::model::Scope::new(account, "us-east-1"),
        manifest: Manifest {
            name: "micro".into(),
            description: "A small one".into(),
            architecture: "x86_64".into(),
            root_device_name: "/dev/xvda".into(),
            default_user: "root".into(),
            disk: "micro.raw".into(),
            disk_size: (1 << 30) + 1,
            sha256: "00".repeat(32),
            created: "2026-01-02T03:04:05Z".parse().expect("a time"),
            boot: BootMethod::Linux {
                partition: 0,
                kernel: "/vmlinuz".into(),
                initrd: None,
                cmdline: String::new(),
            },
        },
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
                    "iam": action.iam,
                    "dry_run": action.dry_run,
                    "unsupported": action.unsupported,
                    "request": shape((action.request)()),
                    "response": shape((action.response)()),
                })
            })
            .collect();
        serde_json::json!({
            "botocore": service.botocore,
            "signing_name": service.signing_name,
            "arn_name": service.arn_name,
            "version": service.version,
            "known": service.known.lines().collect::<Vec<_>>(),
            "actions": actions,
        })
    });
    serde_json::Value::Array(services.collect())
}
