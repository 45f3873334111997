//! `hearth account` beside a `hearth serve` that runs.

use std::process::{Command, Output};

use crate::hearth::{Answer, Hearth, Key, PROGRAM};

const OTHER: &str = "111122223333";

pub(crate) fn account(hearth: &Hearth, args: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.arg("account").arg("--data-dir").arg(hearth.data());
    command.args(args).output().expect("it runs")
}

pub(crate) fn said(output: &Output) -> &str {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

/// The key that a command printed for a shell.
pub(crate) fn key(output: &Output) -> Key {
    let said = said(output);
    let value = |name: &str| {
        let mut lines = said.lines().filter_map(|line| line.split_once('='));
        let found = lines.find(|(known, _)| *known == name);
        let (_, value) = found.unwrap_or_else(|| panic!("no {name} in {said}"));
        value.to_owned()
    };
    Key {
        id: value("AWS_ACCESS_KEY_ID"),
        secret: value("AWS_SECRET_ACCESS_KEY"),
    }
}

fn identity(hearth: &Hearth, key: &Key) -> Answer {
    hearth.call(key, "sts", "2011-06-15", "GetCallerIdentity", &[])
}

fn ec2(hearth: &Hearth, key: &Key, action: &str, parameters: &[(&str, &str)]) -> Answer {
    hearth.call(key, "ec2", "2016-11-15", action, parameters)
}

pub(crate) fn known(hearth: &Hearth, key: &Key, account: &str) {
    assert_eq!(identity(hearth, key).done().one("Account"), account);
}

pub(crate) fn unknown(hearth: &Hearth, key: &Key) {
    let answer = ec2(hearth, key, "DescribeVpcs", &[]);
    assert_eq!((answer.status, answer.refused()), (401, "AuthFailure"));
    let answer = identity(hearth, key);
    assert_eq!(answer.refused(), "InvalidClientTokenId");
}

#[test]
fn a_server_that_runs_follows_every_change_at_once() {
    let hearth = Hearth::start(&["env"]);
    let first = key(&account(&hearth, &["create", "--id", OTHER, "--name", "x"]));
    known(&hearth, &first, OTHER);
    // With all that an account begins with.
    let vpcs = ec2(&hearth, &first, "DescribeVpcs", &[]).done();
    assert_eq!(vpcs.one("ownerId"), OTHER);
    let made = [("KeyName", "kept")];
    ec2(&hearth, &first, "CreateKeyPair", &made).done();

    let list = account(&hearth, &["list"]);
    let line = format!("{OTHER}\tx\tkept\t{}", first.id);
    assert!(said(&list).lines().any(|l| l == line), "{}", said(&list));
    assert!(!said(&list).contains(&first.secret));

    let second = key(&account(&hearth, &["rotate", OTHER, "--keep"]));
    known(&hearth, &first, OTHER);
    known(&hearth, &second, OTHER);
    let third = key(&account(&hearth, &["rotate", OTHER]));
    unknown(&hearth, &first);
    unknown(&hearth, &second);
    known(&hearth, &third, OTHER);

    said(&account(&hearth, &["delete", OTHER]));
    unknown(&hearth, &third);
    known(&hearth, &hearth.key, "000000000000");
    // What it has is there when it is made again.
    let again = key(&account(&hearth, &["create", "--id", OTHER]));
    let pairs = ec2(&hearth, &again, "DescribeKeyPairs", &[]).done();
    assert_eq!(pairs.one("keyName"), "kept");
    unknown(&hearth, &third);
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line() {
    let hearth = Hearth::start(&["env"]);
    for (args, why) in [
        (&["delete", "000000000000"][..], "default account"),
        (&["rotate", OTHER], "there is no account"),
        (&["create", "--id", "12"], "12 digits"),
    ] {
        let refused = account(&hearth, args);
        let error = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(why) && error.lines().count() == 1, "{error}");
        assert!(refused.stdout.is_empty());
    }
    known(&hearth, &hearth.key, "000000000000");
}

#[test]
fn many_at_once_and_the_server_are_in_nobodys_way() {
    let hearth = Hearth::start(&["env"]);
    let made: Vec<(String, Key)> = std::thread::scope(|scope| {
        let all: Vec<_> = (1..=8)
            .map(|n| {
                let hearth = &hearth;
                scope.spawn(move || {
                    let id = format!("{n:012}");
                    let mut made = key(&account(hearth, &["create", "--id", &id]));
                    for _ in 0..3 {
                        // A commit of the server's beside it.
                        known(hearth, &made, &id);
                        ec2(hearth, &made, "DescribeVpcs", &[]).done();
                        made = key(&account(hearth, &["rotate", &id]));
                    }
                    (id, made)
                })
            })
            .collect();
        let made = all.into_iter().map(|one| one.join().expect("no panic"));
        made.collect()
    });
    for (id, key) in &made {
        known(&hearth, key, id);
    }
    let list = account(&hearth, &["list"]);
    assert_eq!(said(&list).lines().count(), 1 + made.len());
}

#[test]
fn a_data_folder_has_one_server() {
    let mut hearth = Hearth::start(&["env"]);
    for command in ["serve", "purge"] {
        let second = Command::new(PROGRAM)
            .args([command, "--hosts", "simulated:1", "--name", "another"])
            .args(["--listen", "127.0.0.1:0", "--data-dir"])
            .arg(hearth.data())
            .arg("--run-dir")
            .arg(hearth.data().join("run"))
            .output()
            .expect("it runs");
        let error = String::from_utf8_lossy(&second.stderr);
        assert_eq!(second.status.code(), Some(2), "{error}");
        assert!(
            error.contains("another hearth has the data folder"),
            "{error}"
        );
    }
    assert!(hearth.is_alive());
    known(&hearth, &hearth.key, "000000000000");
}
