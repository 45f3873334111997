//! The classic first EC2 exercise, with each image, with the AWS CLI and with
//! boto3: what a person does on their first day.

use hearth_tests::{Cloud, Outside, Tcp, outside, wait};

/// What differs between the images.
struct Image {
    name: &'static str,
    user: &'static str,
    /// The instance type. A lab has one processor: two vCPUs take twice as long
    /// there to boot what is large.
    kind: &'static str,
    /// How the user data starts a web server on port 80, and another on 8080.
    serve: &'static str,
    /// What the console says of a finished boot.
    console: &'static str,
    /// How long a boot may take, in seconds, under emulation.
    boot: u64,
}

const MICRO: Image = Image {
    name: "micro",
    user: "ec2-user",
    kind: "t3.micro",
    serve: "printf '#!/bin/sh\\nbusybox httpd -p 80 -h /srv; busybox httpd -p 8080 -h /srv\\n' > /etc/rc.local
        chmod +x /etc/rc.local; /etc/rc.local",
    console: "micro ready",
    boot: 120,
};

const DEBIAN: Image = Image {
    name: "debian-12",
    user: "admin",
    kind: "t2.micro",
    serve: "cd /srv; for p in 80 8080; do systemd-run --collect python3 -m http.server $p --directory /srv; done",
    console: "Reached target",
    boot: 420,
};

#[test]
fn the_exercise_with_the_aws_cli_on_micro() {
    exercise(&MICRO);
}

#[test]
fn the_exercise_with_boto3_on_micro() {
    Cloud::running().boto3("exercise.py", &[MICRO.name, MICRO.user]);
}

#[test]
fn the_exercise_with_the_aws_cli_on_debian() {
    exercise(&DEBIAN);
}

#[test]
fn the_exercise_with_boto3_on_debian() {
    Cloud::running().boto3("exercise.py", &[DEBIAN.name, DEBIAN.user]);
}

#[allow(clippy::too_many_lines)] // one list of steps, as a person would type them
fn exercise(image: &Image) {
    let cloud = Cloud::running();
    let aws = &cloud.aws;
    let host = &cloud.host;
    let outside = Outside::new(host);
    let name = format!("exercise-{}", image.name);

    // A key pair and a security group: ssh from one network, http from anywhere.
    let key = aws.call(&[
        "ec2",
        "create-key-pair",
        "--key-name",
        &name,
        "--key-type",
        "ed25519",
    ]);
    let key = key["KeyMaterial"]
        .as_str()
        .expect("the private key, this once");
    let group = aws.call(&[
        "ec2",
        "create-security-group",
        "--group-name",
        &name,
        "--description",
        "the exercise",
    ]);
    let group = group["GroupId"].as_str().expect("a group id");
    let open = |port: &str, cidr: &str| {
        aws.call(&[
            "ec2",
            "authorize-security-group-ingress",
            "--group-id",
            group,
            "--protocol",
            "tcp",
            "--port",
            port,
            "--cidr",
            cidr,
        ]);
    };
    open("22", &format!("{}/32", outside::ADDRESS));
    open("80", "0.0.0.0/0");

    // Launch.
    let user_data = format!(
        "#!/bin/sh\nmkdir -p /srv\necho once >> /srv/runs\necho \"hello from $(hostname)\" > /srv/index.html\n{}\n",
        image.serve
    );
    let launched = aws.call(&[
        "ec2",
        "run-instances",
        "--image-id",
        &cloud.image(image.name),
        "--instance-type",
        image.kind,
        "--key-name",
        &name,
        "--security-group-ids",
        group,
        "--user-data",
        &user_data,
        "--tag-specifications",
        &format!("ResourceType=instance,Tags=[{{Key=Name,Value={name}}}]"),
    ]);
    let id = launched["Instances"][0]["InstanceId"]
        .as_str()
        .expect("an instance id")
        .to_owned();
    assert_eq!(launched["Instances"][0]["State"]["Name"], "pending");
    aws.call(&["ec2", "wait", "instance-running", "--instance-ids", &id]);
    let running = cloud.instance(&id);
    let ip = running
        .public_ip()
        .expect("a running instance has a public address")
        .to_owned();
    assert_eq!(running.0["Tags"][0]["Value"], name.as_str());

    // The page, from the host and from elsewhere.
    let page = wait::until("the page", image.boot, || {
        outside.curl(&format!("http://{ip}/"))
    });
    assert!(page.contains("hello from ip-172-31-"), "{page}");
    host.curl(&format!("http://{ip}/"))
        .expect("the page from the host");

    // ssh with the key, from where the rule says; not from elsewhere.
    let me = wait::until("ssh", image.boot, || {
        outside.ssh(key, image.user, &ip, "id -un")
    });
    assert_eq!(me, image.user);
    assert_ne!(
        host.tcp(&ip, 22),
        Tcp::Open,
        "port 22 answers an address that no rule names"
    );

    // A port that no rule opens, though somebody listens on it.
    assert_ne!(
        outside.tcp(&ip, 8080),
        Tcp::Open,
        "port 8080 answers, and no rule opens it"
    );
    open("8080", "0.0.0.0/0");
    wait::until("8080 open after a rule was added", 20, || {
        is(outside.tcp(&ip, 8080), Tcp::Open)
    });
    aws.call(&[
        "ec2",
        "revoke-security-group-ingress",
        "--group-id",
        group,
        "--protocol",
        "tcp",
        "--port",
        "8080",
        "--cidr",
        "0.0.0.0/0",
    ]);
    wait::until("8080 closed after it was revoked", 20, || {
        is(outside.tcp(&ip, 8080), Tcp::Dropped)
    });

    // The console.
    wait::until("the console shows the boot", 60, || {
        let console = aws.call(&[
            "ec2",
            "get-console-output",
            "--instance-id",
            &id,
            "--latest",
        ]);
        let text = console["Output"].as_str().unwrap_or("").to_owned();
        if text.contains(image.console) {
            Ok(())
        } else {
            Err(text)
        }
    });

    // Stop: the public address is gone. Start: there is a new one.
    aws.call(&["ec2", "stop-instances", "--instance-ids", &id]);
    let stopped = cloud.wait_for(&id, "stopped", 180);
    assert_eq!(stopped.public_ip(), None);
    assert_eq!(stopped.private_ip(), running.private_ip());
    aws.call(&["ec2", "start-instances", "--instance-ids", &id]);
    let started = cloud.wait_for(&id, "running", 60);
    let new_ip = started
        .public_ip()
        .expect("a started instance has a public address")
        .to_owned();
    assert_ne!(new_ip, ip);
    let ssh = |command: &str| {
        wait::until(command, image.boot, || {
            outside.ssh(key, image.user, &new_ip, command)
        })
    };
    assert_eq!(
        ssh("cat /srv/runs"),
        "once",
        "user data ran again at the second boot"
    );

    if image.name == MICRO.name {
        // What the exercise in the README says of rc.local and sudo.
        wait::until("the page after stop and start", image.boot, || {
            outside.curl(&format!("http://{new_ip}/"))
        });
        assert!(ssh("sudo ls -ld /root").starts_with("drwx------"));
        assert_eq!(ssh("curl -s -m 5 http://localhost/"), page);
        assert_eq!(ssh("wget -q -T 5 -O - http://localhost/"), page);
        // Whoever has the cloud's certificate can tell which instance it is.
        let path = "169.254.169.254/latest/dynamic/instance-identity/pkcs7";
        let message = ssh(&format!("curl -sf -m 5 http://{path}"));
        let document = host.run(&format!(
            "exe=$(readlink -f /proc/$(hearth_pid)/exe)
             $exe identity-certificate --data-dir $data > /tmp/identity.crt
             printf '%s\n' '-----BEGIN PKCS7-----' '{message}' '-----END PKCS7-----' |
                 openssl smime -verify -inform PEM -certfile /tmp/identity.crt -noverify"
        ));
        assert!(document.contains(&id), "{document}");
    }

    // Reboot: another boot, the same address, still no second run.
    let boot = ssh("cat /proc/sys/kernel/random/boot_id");
    aws.call(&["ec2", "reboot-instances", "--instance-ids", &id]);
    wait::until("another boot", image.boot, || {
        match outside.ssh(
            key,
            image.user,
            &new_ip,
            "cat /proc/sys/kernel/random/boot_id",
        ) {
            Ok(now) if now != boot => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(
        ssh("cat /srv/runs"),
        "once",
        "user data ran again after a reboot"
    );
    assert_eq!(cloud.instance(&id).public_ip(), Some(new_ip.as_str()));

    // Terminate: nothing is left on the host.
    let volume = started.0["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
        .as_str()
        .expect("a root volume")
        .to_owned();
    aws.call(&["ec2", "terminate-instances", "--instance-ids", &id]);
    cloud.wait_for(&id, "terminated", 60);
    wait::until("nothing left on the host", 90, || {
        let left = host.run(&format!(
            "pgrep -af 'hearth-vmm.*{id}'
             find $data /run /tmp /sys/fs/cgroup/$label -xdev -maxdepth 3 \\( -name '*{id}*' -o -name '*{volume}*' \\) 2>/dev/null
             true"
        ));
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    assert_ne!(host.tcp(&new_ip, 80), Tcp::Open);
    aws.call(&["ec2", "delete-security-group", "--group-id", group]);
    aws.call(&["ec2", "delete-key-pair", "--key-name", &name]);
}

fn is(seen: Tcp, wanted: Tcp) -> Result<(), String> {
    if seen == wanted {
        Ok(())
    } else {
        Err(format!("{seen:?}"))
    }
}
