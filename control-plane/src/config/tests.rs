//! Flags and files into a configuration, and which of them are refused.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    serve: ServeArgs,
}

fn config(flags: &[&str]) -> Result<Config, String> {
    let args = Cli::try_parse_from([&["hearth"], flags].concat()).map_err(|e| e.to_string())?;
    with_file(args.serve, "")
}

fn with_file(args: ServeArgs, text: &str) -> Result<Config, String> {
    let file = ConfigFile::parse(text)?;
    Config::new(args, file, "box", Some("/opt/bin/hearth".into())).map_err(|e| e.to_string())
}

#[test]
fn a_file_names_accounts_and_regions() {
    let text = "
        [[region]]
        name = 'eu-test-1'
        zones = ['eu-test-1b', 'eu-test-1c']
        [[region]]
        name = 'us-test-1'
        zones = ['us-test-1a']
        [[account]]
        id = '111122223333'
        [[account.key]]
        access_key_id = 'AKIAONE'
        secret_access_key = 'one'
    ";
    let args = |flags: &[&str]| Cli::parse_from([&["hearth"], flags].concat()).serve;
    let c = with_file(args(&[]), text).unwrap();
    assert_eq!(
        (c.region.as_str(), c.zone.as_str()),
        ("eu-test-1", "eu-test-1b")
    );
    assert_eq!(c.region_names(), ["eu-test-1", "us-test-1"]);
    assert_eq!(c.account_id, "111122223333");
    assert_eq!(c.accounts[0].keys[0].access_key_id, "AKIAONE");
    let c = with_file(
        args(&["--region", "us-test-1", "--account-id", "444455556666"]),
        text,
    );
    let c = c.unwrap();
    assert_eq!(
        (c.zone.as_str(), c.account_id.as_str()),
        ("us-test-1a", "444455556666")
    );
    for (flags, name) in [
        (["--region", "mars-1"], "--region"),
        (["--zone", "eu-test-1a"], "--zone"),
        (["--zone", "us-test-1a"], "--zone"),
    ] {
        let refused = with_file(args(&flags), text).unwrap_err();
        assert!(refused.contains(name), "{refused}");
    }
}

#[test]
fn defaults_come_from_the_machine() {
    let c = config(&[]).unwrap();
    assert_eq!(c.zone, "us-east-1a");
    assert_eq!(c.host_id.0, "box");
    assert_eq!(c.vmm_binary, PathBuf::from("/opt/bin/hearth-vmm"));
    assert_eq!(c.images_dir, PathBuf::from("/var/lib/hearth/images"));
    assert_eq!(c.run_dir, PathBuf::from("/run/hearth"));
    let named = config(&["--name", "test"]).unwrap();
    assert_eq!(named.run_dir, PathBuf::from("/run/hearth-test"));
    assert!(c.restart_lost);
    assert!(!config(&["--restart-lost", "false"]).unwrap().restart_lost);
    assert_eq!(c.host_address(), Ipv4Addr::new(203, 0, 113, 1));
    let all = c.public_addresses();
    assert_eq!(all.count(), 253);
    assert_eq!(all.at(0), Ipv4Addr::new(203, 0, 113, 2));
    assert_eq!(all.at(252), Ipv4Addr::new(203, 0, 113, 254));
}

#[test]
fn a_simulation_is_no_machine() {
    let c = config(&["--hosts", "simulated:3"]).unwrap();
    assert_eq!(c.host_id.0, SIMULATED_HOST);
    assert_eq!(c.names, HostNames::new(Some("simulated")));
    assert_eq!(c.simulated.unwrap().hosts, 3);
    for flags in [
        &["--host-id", SIMULATED_HOST][..],
        &["--host-id", "box", "--hosts", "simulated:3"],
        &["--warm-templates", "1", "--hosts", "simulated:3"],
        &["--hosts", "simulated:0"],
        &["--hosts", "simulated:100000"],
        &["--hosts", "that"],
        &["--simulated-delay-ms", "5"],
        &["--hosts", "simulated:3", "--simulated-delay-ms", "30000"],
        &["--hosts", "simulated:3", "--simulated-failures", "2"],
    ] {
        config(flags).unwrap_err();
    }
}

#[test]
fn beyond_this_machine_tls_is_asked_for() {
    assert_eq!(config(&["--listen", "[::1]:1"]).unwrap().tls, None);
    for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
        let refused = config(&["--listen", address]).unwrap_err();
        assert!(refused.contains("--insecure-listen"), "{refused}");
        let plain = config(&["--listen", address, "--insecure-listen"]).unwrap();
        assert_eq!(plain.tls, None);
    }
    let own = config(&[
        "--listen",
        "192.0.2.1:1",
        "--tls",
        "--tls-name",
        "x.example",
    ]);
    let Some(tls::Source::Own { folder, names }) = own.unwrap().tls else {
        panic!("no authority of its own");
    };
    assert_eq!(folder, PathBuf::from("/var/lib/hearth/tls"));
    let wanted = [
        "127.0.0.1",
        "192.0.2.1",
        "::1",
        "box",
        "localhost",
        "x.example",
    ];
    assert_eq!(names, wanted);
    let given = config(&[
        "--tls-cert",
        "/c",
        "--tls-key",
        "/k",
        "--listen",
        "0.0.0.0:1",
    ]);
    assert!(matches!(
        given.unwrap().tls,
        Some(tls::Source::Given { .. })
    ));
    assert!(config(&["--tls-cert", "/c"]).is_err());
    assert!(config(&["--tls", "--tls-cert", "/c", "--tls-key", "/k"]).is_err());
}

#[test]
fn nonsense_is_refused_by_the_flags_name() {
    for (flags, name) in [
        (["--zone", "eu-west-1a"], "--zone"),
        (["--zone", "us-east-1"], "--zone"),
        (["--region", "US"], "--region"),
        (["--account-id", "12"], "--account-id"),
        (["--public-pool", "10.0.0.1/24"], "--public-pool"),
        (["--public-pool", "10.0.0.0/30"], "--public-pool"),
        (["--cpu-overcommit", "0"], "--cpu-overcommit"),
        (["--memory-overcommit", "NaN"], "--memory-overcommit"),
        (["--disk-overcommit", "0"], "--disk-overcommit"),
        (["--data-dir", "here"], "--data-dir"),
        (["--host-id", "a/b"], "--host-id"),
        (["--name", ""], "--name"),
        (["--name", "../x"], "--name"),
        (["--name", "Test"], "--name"),
        (["--listen", "nowhere"], "--listen"),
    ] {
        let refused = config(&flags).unwrap_err();
        assert!(refused.contains(name), "{refused}");
    }
}
