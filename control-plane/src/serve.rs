//! Puts the parts together and runs them.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::DirBuilderExt as _,
            net::{SocketAddr as UnixAddress, UnixListener},
        },
    },
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow};
use hearth::{
    api::{self, Cloud, Console},
    auth::{RootOnly, credentials::CredentialStore},
    bootstrap::{Machine, bootstrap},
    compute::{
        ComputeHost,
        host::{HostCompute, protect_from_oom_killer},
    },
    config::{Config, SIMULATED_HOST, Simulated},
    console::HostConsole,
    metadata::Identity,
    model::{self, HostId},
    network::{NetworkHost, host::LinuxNetwork},
    reconcile::{
        Controllers, Slots,
        host::{DiskGuard, HostSpare},
        system_clock,
    },
    simulation,
    storage::{self, host::HostStorage},
    store::{Db, SqliteStore},
    tls::{Authority, Source, Tls},
};
use rustix::fs::FlockOperation;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

/// How long the steps that are under way may take to end. What is cut short
/// then is taken up again by the next process.
const LAST_STEPS: Duration = Duration::from_secs(30);

/// Why `hearth` ended.
pub(crate) enum Failure {
    /// It never began: something about the configuration or this host.
    Setup(anyhow::Error),
    /// It began, and could not go on.
    Running(anyhow::Error),
}

/// The hosts that this process acts for.
struct Ground {
    controllers: Controllers,
    console: Arc<dyn Console>,
    /// What looks after this machine's disk, if the host is this machine.
    guard: Option<DiskGuard>,
}

/// Serves until SIGTERM or SIGINT; the instances run on.
pub(crate) async fn serve(config: Config) -> Result<(), Failure> {
    let lock = lock(&config).map_err(Failure::Setup)?;
    if config.simulated.is_none()
        && let Err(error) = protect_from_oom_killer()
    {
        tracing::warn!(%error, "should memory run out, the kernel may end this process");
    }
    let config = Arc::new(config);
    let tls = config.tls.clone().map(Tls::open).transpose();
    let tls = tls.context("TLS").map_err(Failure::Setup)?;
    let (ground, credentials, listener) = set_up(&config).await.map_err(Failure::Setup)?;
    let result = run(config, ground, credentials, listener, tls)
        .await
        .map_err(Failure::Running);
    drop(lock);
    result
}

async fn set_up(config: &Arc<Config>) -> anyhow::Result<(Ground, CredentialStore, TcpListener)> {
    same_host(config)?;
    let path = config.credentials();
    let credentials = CredentialStore::open(&path, &config.account_id, config.accounts.clone())
        .with_context(|| format!("the credentials in {}", path.display()))?;
    let path = config.data_dir.join("hearth.db");
    let store = SqliteStore::open(&path)
        .await
        .with_context(|| format!("the database {}", path.display()))?;
    let db = Db::open(Arc::new(store))
        .await
        .context("reading the database")?;
    let ground = match config.simulated {
        None => this_machine(config, &db).await?,
        Some(simulated) => simulated_hosts(config, &db, simulated).await?,
    };
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("--listen {}", config.listen))?;
    Ok((ground, credentials, listener))
}

async fn this_machine(config: &Arc<Config>, db: &Db) -> anyhow::Result<Ground> {
    let reserve = config
        .disk_reserve_mib
        .map(|mib| mib.saturating_mul(1 << 20));
    let storage = HostStorage::open(&config.data_dir, reserve)?;
    let space = storage.space().await?;
    let disk_gib = space.capacity_gib(storage.reserve(), config.disk_overcommit);
    let machine = Machine::probe(disk_gib).context("looking at this machine")?;
    bootstrap(db, config, machine)
        .await
        .context("writing the default VPC")?;
    let compute = HostCompute::open(
        &config.names,
        &config.data_dir,
        &config.vmm_binary,
        config.jail_layers_optional.clone(),
        config.warm_templates,
    )?;
    let identity = Identity::load_or_create(&Identity::folder(&config.data_dir), SystemTime::now())
        .context("the key of instance identity documents")?;
    let network = LinuxNetwork::new(
        config.names.clone(),
        config.public_pool,
        &config.region,
        &config.run_dir,
        db.changed(),
    )?
    .with_open_ports(config.guest_host_ports.iter().copied())
    .with_identity(Arc::new(identity));
    let storage = Arc::new(storage);
    let free = Arc::clone(&storage);
    let free = Arc::new(move || free.available());
    let spare = HostSpare {
        db: db.clone(),
        host: config.host_id.clone(),
    };
    let compute = compute
        .with_disk_reserve(storage.reserve(), free)
        .with_spare(Arc::new(spare));
    let compute = Arc::new(compute);
    let guard = DiskGuard {
        db: db.clone(),
        host: config.host_id.clone(),
        storage: storage.clone(),
        writers: compute.clone(),
        overcommit: config.disk_overcommit,
    };
    let controllers = Controllers {
        db: db.clone(),
        config: config.clone(),
        hosts: model::Hosts::one(config.host_id.clone()),
        compute: compute.clone(),
        storage,
        network: Arc::new(network),
        images: Some(config.images_dir.clone()),
        slots: Slots::of_this_machine(),
        clock: system_clock(),
    };
    Ok(Ground {
        console: Arc::new(HostConsole(compute)),
        controllers,
        guard: Some(guard),
    })
}

async fn simulated_hosts(
    config: &Arc<Config>,
    db: &Db,
    simulated: Simulated,
) -> anyhow::Result<Ground> {
    let hosts = simulation::bootstrap(db, config, simulated.hosts).await;
    let hosts = hosts.context("writing the simulated hosts")?;
    tracing::warn!(
        hosts = simulated.hosts,
        "a simulation: instances have no guests, volumes no data, interfaces no packets"
    );
    let controllers = simulation::controllers(db, config, hosts, simulated.conditions);
    Ok(Ground {
        console: Arc::new(HostConsole(controllers.compute.clone())),
        controllers,
        guard: None,
    })
}

/// The data folder and the name of a `hearth`, for as long as this lives.
struct Lock {
    _data: File,
    _name: UnixListener,
}

/// Makes the folders, and sees to it that no other `hearth` has them or names
/// its own on this host as this one does: each would remove what the other made.
fn lock(config: &Config) -> anyhow::Result<Lock> {
    let label = config.names.label();
    // Abstract names belong to the network namespace, as links and tables do, and
    // end with the process.
    let address = UnixAddress::from_abstract_name(format!("{label}/lock"))?;
    let name = match UnixListener::bind_addr(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            return Err(anyhow!(
                "another {label} runs on this machine: give this one a --name of its own"
            ));
        }
        bound => bound.context("taking this hearth's name")?,
    };
    // Each VMM, a user of its own, passes through to its part of the data.
    for folder in [&config.data_dir, &config.run_dir] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(folder)
            .with_context(|| format!("making {}", folder.display()))?;
    }
    let path = config.data_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock {
            _data: file,
            _name: name,
        }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(anyhow!(
            "another hearth has the data folder {}",
            config.data_dir.display()
        )),
        Err(error) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

/// The records of this host are under its id. Under another the instances that
/// run here would be strangers, and be removed.
fn same_host(config: &Config) -> anyhow::Result<()> {
    let path = config.data_dir.join("host-id");
    match fs::read_to_string(&path) {
        Ok(known) if HostId(known.trim().to_owned()) == config.host_id => Ok(()),
        Ok(known) => Err(anyhow!(
            "--host-id {}: the data folder {} is of the host {}",
            config.host_id,
            config.data_dir.display(),
            known.trim()
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write_whole(&path, &config.host_id.0)
        }
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, format!("{text}\n"))
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("writing {}", path.display()))
}

async fn run(
    config: Arc<Config>,
    ground: Ground,
    credentials: CredentialStore,
    listener: TcpListener,
    tls: Option<Tls>,
) -> anyhow::Result<()> {
    let (shutdown, receiver) = watch::channel(false);
    let mut tasks = JoinSet::new();
    ground.controllers.start(&mut tasks, &receiver);
    let db = ground.controllers.db;
    if let Some(guard) = ground.guard {
        tasks.spawn(guard.run(receiver.clone()));
    }
    let cloud = Cloud {
        db,
        config: Arc::clone(&config),
        console: ground.console,
        policies: Arc::new(RootOnly),
    };
    let address = listener.local_addr().unwrap_or(config.listen);
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let router = api::router(cloud, credentials);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let server = tokio::spawn(async move {
        match tls {
            Some(tls) => api::serve_tls(listener, &tls, router, receiver).await,
            None => api::serve(listener, router, receiver).await,
        }
    });
    // Connections are taken from here on.
    let _ = writeln!(io::stdout(), "hearth: the API is at {scheme}://{address}");
    if let Some(Source::Own { folder, .. }) = &config.tls {
        let path = Authority::certificate_in(folder);
        let _ = writeln!(io::stdout(), "hearth: clients trust {}", path.display());
    }
    tracing::info!(%address, host = %config.host_id, zone = config.zone, "serving");
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        // A controller ends by itself only when the view is lost: begin anew.
        _ = tasks.join_next() => Err(anyhow!("a reconciler has ended: see the log")),
    };
    tracing::info!("ending; the instances run on");
    shutdown.send_replace(true);
    let last = async {
        while tasks.join_next().await.is_some() {}
        let _ = server.await;
    };
    if timeout(LAST_STEPS, last).await.is_err() {
        tracing::warn!("a step or a request takes too long and is cut short");
    }
    ended
}

/// Removes every instance and all that Hearth has made on this host. Twice is
/// harmless, and so is a host that never served.
pub(crate) async fn purge(config: Config) -> Result<(), Failure> {
    let lock = lock(&config).map_err(Failure::Setup)?;
    let result = remove_all(&config).await.map_err(Failure::Running);
    drop(lock);
    result
}

async fn remove_all(config: &Config) -> anyhow::Result<()> {
    // A simulation has made nothing on this machine but its files.
    let whose = fs::read_to_string(config.data_dir.join("host-id"));
    let simulated = whose.is_ok_and(|id| id.trim() == SIMULATED_HOST);
    if config.simulated.is_none() && !simulated {
        remove_from_host(config).await?;
    }
    // Last: as long as any of the above is there, the database says what it is.
    // With its logs, and the copies that were made before it was brought up to date.
    for entry in fs::read_dir(&config.data_dir)? {
        let name = entry?.file_name();
        if name != "host-id" && !name.to_string_lossy().starts_with("hearth.db") {
            continue;
        }
        let path = config.data_dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The instances, the networks and the volumes.
async fn remove_from_host(config: &Config) -> anyhow::Result<()> {
    let compute = HostCompute::open(
        &config.names,
        &config.data_dir,
        &config.vmm_binary,
        config.jail_layers_optional.clone(),
        config.warm_templates,
    )?;
    compute.purge().await.context("removing the instances")?;
    let db = Db::in_memory().await;
    LinuxNetwork::new(
        config.names.clone(),
        config.public_pool,
        &config.region,
        &config.run_dir,
        db.changed(),
    )?
    .purge()
    .await
    .context("removing the network")?;
    let data = config.data_dir.clone();
    tokio::task::spawn_blocking(move || storage::host::purge(&data))
        .await?
        .context("removing the volumes")?;
    Ok(())
}
