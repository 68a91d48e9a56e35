//! The pieces of the cases. Rules name addresses of 198.51.100.0/24, 10.1.2.3 and host names of example.com. The
//! judge connects from none of these.

use crate::matrix_support::lab::MatrixEnvironment;
use crate::matrix_support::row::OpensshVersion;
use crate::support::dice::SeededRng;

use super::case::{IncludePlacement, Piece};

/// Chooses one to seven pieces; most cases have few.
pub fn random_pieces(dice: &mut SeededRng, lab: &MatrixEnvironment) -> Vec<Piece> {
    let count = 1 + dice.next_below(3) + dice.next_below(3) * dice.next_below(3);
    let mut pieces: Vec<Piece> = Vec::new();
    for _ in 0..count {
        let piece = random_piece(dice, lab);
        // A case has at most one listening address and one Include.
        let is_again = pieces.iter().any(|other| {
            matches!(
                (other, &piece[0]),
                (Piece::Listen(..), Piece::Listen(..)) | (Piece::Include(_), Piece::Include(_))
            )
        });
        if !is_again {
            pieces.extend(piece);
        }
    }
    pieces
}

fn random_piece(dice: &mut SeededRng, lab: &MatrixEnvironment) -> Vec<Piece> {
    match dice.next_below(100) {
        0..=22 => {
            let line = random_global_line(dice, lab.version);
            add_referenced_files(dice, Piece::Global, line)
        }
        23..=31 => {
            let line = random_key_files_line(dice);
            add_referenced_files(dice, Piece::Global, line)
        }
        32..=48 => {
            let block = random_match_block(dice, lab.version);
            add_referenced_files(dice, Piece::Block, block)
        }
        49..=66 => random_key_lines(dice),
        67..=74 => vec![random_account_setup(dice)],
        75..=81 => vec![random_permissions_setup(dice)],
        82..=85 => {
            let name =
                *pick_random(dice, &["00-a.conf", "+a.conf", "50-other.conf", "zz.conf", "00-a.conf.bak"]);
            let text = if dice.next_below(3) == 0 {
                random_match_block(dice, lab.version)
            } else {
                format!("{}\n", random_global_line(dice, lab.version))
            };
            add_referenced_files(dice, |text| Piece::DropIn(name, text), text)
        }
        86..=88 => vec![Piece::Include(*pick_random(
            dice,
            &[
                IncludePlacement::AtEnd,
                IncludePlacement::Missing,
                IncludePlacement::InMatch,
                IncludePlacement::Relative,
                IncludePlacement::OneFile,
            ],
        ))],
        89..=90 => vec![Piece::Arguments(
            pick_random(
                dice,
                &[
                    "-o PasswordAuthentication=yes",
                    "-o PasswordAuthentication=no",
                    "-oPermitRootLogin=no",
                    "-o PubkeyAuthentication=no",
                    "-o AuthorizedKeysFile=.ssh/authorized_keys2",
                    "-o UsePAM=no",
                    "-4",
                    "-u0",
                    "-o LogLevel=VERBOSE",
                    "-o AllowUsers=@USER@",
                    "-o DenyUsers=@USER@",
                    "-o MaxAuthTries=1",
                ],
            )
            .split(' ')
            .map(str::to_owned)
            .collect(),
        )],
        91..=96 => random_listener(dice),
        _ => vec![random_unread_edit(dice)],
    }
}

fn pick_random<'a, T>(dice: &mut SeededRng, all: &'a [T]) -> &'a T {
    &all[dice.next_below(all.len())]
}

/// Adds the file that a line names.
fn add_referenced_files(dice: &mut SeededRng, make: impl Fn(String) -> Piece, text: String) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut file = |path: &str, text: &str| pieces.push(Piece::File(path.into(), text.into()));
    if text.contains("/etc/ssh/revoked.krl") {
        let whose = pick_random(dice, &["@KEY@", "@OTHER_KEY@"]);
        let script =
            format!("echo '{whose}' >/tmp/r.pub; ssh-keygen -q -k -f /etc/ssh/revoked.krl /tmp/r.pub");
        pieces.push(Piece::Setup(script));
    } else if text.contains("/etc/ssh/revoked") {
        let words = [
            "@KEY@\n",
            "@OTHER_KEY@\n",
            "# nobody\n\n",
            "",
            "this is no key\n",
            "@OTHER_KEY@\nthis is no key\n",
            "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n",
        ];
        file("/etc/ssh/revoked", pick_random::<&str>(dice, &words));
    } else if text.contains("/etc/ssh/banner") {
        file("/etc/ssh/banner", DECEPTIVE_BANNER);
    } else if text.contains("/usr/local/bin/keys") {
        let what = pick_random(dice, &["@KEY@", "@OTHER_KEY@", "command=\"/bin/false\" @KEY@", "# none"]);
        file("/usr/local/bin/keys", &format!("#!/bin/sh\necho '{what}'\n"));
        pieces.push(Piece::Setup("chmod 755 /usr/local/bin/keys".into()));
    }
    pieces.push(make(text));
    // Moves the line itself to the front.
    pieces.rotate_right(1);
    pieces
}

/// A server's banner that imitates messages of the ssh client.
const DECEPTIVE_BANNER: &str = "debug1: Server accepts key: /k ED25519 SHA256:x explicit\r\n\
    debug1: Authentications that can continue: publickey\r\nConnection refused\r\n\
    ssh: connect to host 127.0.0.1 port 22: Connection refused\n\rdebug1: Authentications that can continue: none\n\
    Permission denied (publickey).\n";

fn random_global_line(dice: &mut SeededRng, version: OpensshVersion) -> String {
    let mut lines = vec![
        "StrictModes yes",
        "StrictModes no",
        "PubkeyAuthentication no",
        "PubkeyAuthentication yes",
        "PermitRootLogin prohibit-password",
        "PermitRootLogin without-password",
        "PermitRootLogin forced-commands-only",
        "PermitRootLogin no",
        "PermitRootLogin yes",
        "AuthenticationMethods publickey",
        "AuthenticationMethods publickey password",
        "AuthenticationMethods publickey,password",
        "AuthenticationMethods publickey,password publickey",
        "AuthenticationMethods password",
        "AuthenticationMethods publickey,publickey",
        "AuthenticationMethods any",
        "AuthenticationMethods publickey,keyboard-interactive keyboard-interactive",
        "AllowUsers @USER@",
        "AllowUsers somebody",
        "AllowUsers @USER@@198.51.100.0/24",
        "AllowUsers @USER@@*.example.com",
        "AllowUsers @USER@@host.example.com somebody",
        "AllowUsers @USER@@*",
        "AllowUsers \"@USER@\" bob",
        "AllowUsers *",
        "AllowUsers somebody\nAllowUsers @USER@",
        "AllowUsers !somebody,@USER@",
        "AllowUsers @USER@@198.51.100.0/24 @USER@",
        "DenyUsers @USER@",
        "DenyUsers somebody",
        "DenyUsers @USER@@198.51.100.0/24",
        "DenyUsers @USER@@127.0.0.1",
        "DenyUsers !@USER@,*",
        "DenyUsers r*",
        "AllowGroups @USER@",
        "AllowGroups nobodys \"ops team\"",
        "AllowGroups \"ops team\"",
        "AllowGroups ops* @USER@",
        "DenyGroups \"ops team\"",
        "DenyGroups @USER@",
        "DenyGroups team",
        "DenyGroups nobodys",
        "UsePAM no",
        "UsePAM yes",
        "PasswordAuthentication no",
        "PasswordAuthentication yes",
        "passwordauthentication=no",
        "\tPasswordAuthentication \"yes\"",
        "ChallengeResponseAuthentication yes",
        "ChallengeResponseAuthentication no",
        "PermitEmptyPasswords yes",
        "MaxAuthTries 1",
        "MaxAuthTries 2",
        "MaxSessions 0",
        "MaxSessions 1",
        "ForceCommand /bin/false",
        "ForceCommand internal-sftp",
        "ForceCommand echo $SSH_ORIGINAL_COMMAND",
        "ForceCommand none",
        "ChrootDirectory /",
        "ChrootDirectory /var/empty",
        "ChrootDirectory none",
        "ChrootDirectory %h",
        "RevokedKeys /etc/ssh/revoked",
        "RevokedKeys \"/etc/ssh/revoked\"",
        "RevokedKeys /etc/ssh/revoked.krl",
        "RevokedKeys /etc/ssh/missing",
        "RevokedKeys none",
        "RevokedKeys /etc/ssh/sshd_config.d",
        "UseDNS yes",
        "UseDNS no",
        "LogLevel QUIET",
        "LogLevel DEBUG3",
        "Banner /etc/ssh/banner",
        "Banner none",
        "LoginGraceTime 0",
        "MaxStartups 100",
        "DisableForwarding yes",
        "ExposeAuthInfo yes",
        "PermitUserEnvironment yes",
        "HostbasedAuthentication yes",
        "AuthorizedKeysCommand /usr/local/bin/keys\nAuthorizedKeysCommandUser nobody",
        "AuthorizedKeysCommand /usr/local/bin/keys %u\nAuthorizedKeysCommandUser root",
        "TrustedUserCAKeys /etc/ssh/ca.pub",
        "KexAlgorithms ecdh-sha2-nistp256",
        "Ciphers aes128-ctr",
        "ClientAliveInterval 10",
        "VersionAddendum Debian-1",
        "PidFile /run/sshd.pid",
        "AuthenticationMethods publickey,password\nPasswordAuthentication yes",
    ];
    let algorithms = [
        "ssh-ed25519",
        "rsa-sha2-512",
        "-ssh-ed25519",
        "+ssh-rsa",
        "ssh-ed25519,rsa-sha2-256,ecdsa-sha2-nistp256",
        "ecdsa-sha2-*",
        "ssh-rsa",
        "ssh-*",
    ];
    let name =
        if version >= OpensshVersion(8, 5) { "PubkeyAcceptedAlgorithms" } else { "PubkeyAcceptedKeyTypes" };
    if dice.next_below(12) == 0 {
        return format!("{name} {}", pick_random(dice, &algorithms));
    }
    if version >= OpensshVersion(8, 7) {
        lines.extend([
            "KbdInteractiveAuthentication yes",
            "KbdInteractiveAuthentication yes",
            "kbdinteractiveauthentication no",
        ]);
    }
    if version >= OpensshVersion(9, 1) {
        lines.extend(["RequiredRSASize 3072", "RequiredRSASize 2048", "RequiredRSASize 16384"]);
    }
    if version >= OpensshVersion(9, 8) {
        lines.extend(["PerSourcePenalties no", "PerSourcePenalties authfail:30s", "PerSourceMaxStartups 1"]);
    }
    if version >= OpensshVersion(9, 9) {
        lines.extend(["RefuseConnection yes", "RefuseConnection no"]);
    }
    if version >= OpensshVersion(10, 3) {
        lines.extend(["RevokedKeys /etc/ssh/revoked /etc/ssh/revoked"]);
    }
    (*pick_random(dice, &lines)).to_owned()
}

fn random_key_files_line(dice: &mut SeededRng) -> String {
    let values = [
        ".ssh/authorized_keys",
        ".ssh/authorized_keys .ssh/authorized_keys2",
        ".ssh/authorized_keys2 .ssh/authorized_keys",
        "/etc/ssh/keys/%u",
        "/etc/ssh/keys/%u .ssh/authorized_keys",
        "/etc/ssh/shared .ssh/authorized_keys",
        ".ssh/authorized_keys /etc/ssh/shared",
        "/etc/ssh/shared",
        "none",
        "\"%h/my keys/ak\"",
        "\"%h/my keys/ak\" .ssh/authorized_keys",
        "\"/etc/ssh/keys dir/%u\"",
        "\".ssh/authorized_keys\"",
        "/etc/ssh/@USER@/authorized_keys",
        "/etc/ssh/%u/authorized_keys",
        ".ssh/authorized_keys*",
        ".ssh/*_keys",
        "%h/.ssh/authorized_keys",
        "@HOME@/.ssh/authorized_keys",
        "/..@HOME@/.ssh/authorized_keys",
        ".ssh/../.ssh/authorized_keys",
        "%h/%%/ak",
        "%h//.ssh//authorized_keys",
        "/etc/ssh/shared /etc/ssh/keys/%u .ssh/authorized_keys",
    ];
    format!("AuthorizedKeysFile {}", pick_random(dice, &values))
}

fn random_match_block(dice: &mut SeededRng, version: OpensshVersion) -> String {
    let conditions = [
        "User @USER@",
        "User @USER@",
        "User bob",
        "User *,!@USER@",
        "User \"@USER@\"",
        "User @USER@,bob",
        "Group @USER@",
        "Group \"ops team\"",
        "Group nobodys",
        "Address 198.51.100.0/24",
        "Address *,!127.0.0.1,!::1",
        "Address *,!198.51.100.0/24",
        "Address 127.0.0.1,::1",
        "Address 0.0.0.0/0",
        "LocalAddress 10.1.2.3",
        "LocalAddress *,!10.1.2.3",
        "LocalPort 22",
        "LocalPort 2222",
        "Host *.example.com",
        "Host *,!*.example.com",
        "all",
        "User @USER@ Address 198.51.100.0/24",
        "Group @USER@ LocalPort 22",
    ];
    let bodies = [
        "PasswordAuthentication yes",
        "PasswordAuthentication yes",
        "PasswordAuthentication no",
        "PubkeyAuthentication no",
        "PubkeyAuthentication yes",
        "PermitRootLogin no",
        "PermitRootLogin prohibit-password",
        "PermitRootLogin forced-commands-only",
        "AuthenticationMethods publickey",
        "AuthenticationMethods publickey,password",
        "AuthenticationMethods password publickey",
        "AuthenticationMethods any",
        "ForceCommand /bin/false",
        "ForceCommand internal-sftp",
        "ForceCommand none",
        "ChrootDirectory /var/empty",
        "ChrootDirectory none",
        "MaxSessions 0",
        "MaxAuthTries 1",
        "PermitEmptyPasswords yes",
        "RevokedKeys /etc/ssh/revoked",
        "RevokedKeys none",
        "AllowUsers @USER@",
        "AllowUsers somebody",
        "DenyUsers @USER@",
        "AllowGroups \"ops team\"",
        "DenyGroups \"ops team\"",
        "Banner /etc/ssh/banner",
        "X11Forwarding no",
    ];
    let mut text = format!("Match {}\n", pick_random(dice, &conditions));
    for _ in 0..1 + dice.next_below(2) {
        let line = match dice.next_below(10) {
            0 => random_key_files_line(dice),
            1 if version >= OpensshVersion(8, 7) => "KbdInteractiveAuthentication yes".into(),
            2 if version >= OpensshVersion(7, 5) => {
                format!("LogLevel {}", pick_random(dice, &["QUIET", "DEBUG1"]))
            }
            3 if version >= OpensshVersion(8, 5) => {
                format!(
                    "PubkeyAcceptedAlgorithms {}",
                    pick_random(dice, &["rsa-sha2-512", "ssh-ed25519", "ssh-*"])
                )
            }
            4 if version >= OpensshVersion(9, 9) => "RefuseConnection yes".into(),
            _ => (*pick_random(dice, &bodies)).to_owned(),
        };
        text += &format!("    {line}\n");
    }
    text
}

fn random_key_lines(dice: &mut SeededRng) -> Vec<Piece> {
    let lines = [
        "@OTHER_KEY@\n",
        "@OTHER_KEY@\n",
        "@OTHER_KEY@",
        "@KEY@\n",
        "@KEY@",
        "command=\"/bin/false\" @KEY@\n",
        "command=\"echo no\",no-pty @KEY@\n",
        "command=\"/bin/false \\\\\" x\" @KEY@\n",
        "restrict @KEY@\n",
        "no-pty @KEY@\n",
        "from=\"198.51.100.0/24\" @KEY@\n",
        "from=\"*.example.com\" @KEY@\n",
        "expiry-time=\"20200101\" @KEY@\n",
        "expiry-time=\"20990101\" @KEY@\n",
        "cert-authority @KEY@\n",
        "no-such-option @KEY@\n",
        "environment=\"A=b\" @KEY@\n",
        "principals=\"x\" @KEY@\n",
        "command=\"a\0b\" @KEY@\n",
        "@KEY@\0 rubbish\n",
        "@OTHER_KEY@\r\n@KEY@\r\n",
        "\u{feff}@OTHER_KEY@\n",
        "\u{feff}@KEY@\n",
        "@OTHER_KEY@@KEY@\n",
        "  \t@KEY@\n",
        "# @KEY@\n",
        "ssh-ed25519 rubbish\n",
        "from=\"198.51.100.0/24\",command=\"/bin/false\" @KEY@\n",
        "restrict @OTHER_KEY@\n",
        "from=\"198.51.100.0/24\" @OTHER_KEY@\n",
        "command=\"/bin/false\" @OTHER_KEY@\n",
    ];
    let mut text = (*pick_random(dice, &lines)).to_owned();
    if dice.next_below(30) == 0 {
        text = format!("# {}\n{text}", "x".repeat(9000));
    }
    let file = match dice.next_below(10) {
        0 => "@HOME@/.ssh/authorized_keys2",
        1 => "/etc/ssh/shared",
        2 => "/etc/ssh/keys/@USER@",
        3 => "@HOME@/my keys/ak",
        _ => "@HOME@/.ssh/authorized_keys",
    };
    vec![Piece::Key(file.into(), text)]
}

fn random_account_setup(dice: &mut SeededRng) -> Piece {
    let scripts = [
        "sed -i 's/^@USER@:/@USER@:!/' /etc/shadow",
        "sed -i 's/^@USER@:[^:]*:/@USER@:!:/' /etc/shadow",
        "sed -i 's/^@USER@:[^:]*:/@USER@:*:/' /etc/shadow",
        "sed -i 's/^@USER@:[^:]*:/@USER@:!!:/' /etc/shadow",
        "sed -i 's/^@USER@:[^:]*:/@USER@::/' /etc/shadow",
        "sed -i -E 's/^(@USER@:[^:]*:[^:]*:[^:]*:[^:]*:[^:]*:[^:]*):[^:]*:/\\1:17000:/' /etc/shadow",
        "sed -i -E 's/^(@USER@:[^:]*:[^:]*:[^:]*:[^:]*:[^:]*:[^:]*):[^:]*:/\\1:40000:/' /etc/shadow",
        "sed -i -E 's/^(@USER@:[^:]*):[^:]*:[^:]*:[^:]*:/\\1:17000:0:30:/' /etc/shadow",
        "sed -i -E 's/^(@USER@:[^:]*):[^:]*:/\\1:0:/' /etc/shadow",
        "sed -i '/^@USER@:/d' /etc/shadow",
        "sed -i -E 's#^(@USER@:.*):[^:]*$#\\1:/usr/sbin/nologin#' /etc/passwd",
        "sed -i -E 's#^(@USER@:.*):[^:]*$#\\1:/bin/missing#' /etc/passwd",
        "sed -i -E 's#^(@USER@:.*):[^:]*$#\\1:/bin/false#' /etc/passwd",
        "sed -i -E 's#^(@USER@:.*):[^:]*$#\\1:#' /etc/passwd",
        "sed -i -E 's#^(@USER@:.*):[^:]*$#\\1:/etc/passwd#' /etc/passwd",
        "echo 'ops team:x:5000:@USER@' >>/etc/group",
        "echo 'team:x:5001:@USER@' >>/etc/group",
        "echo closed >/etc/nologin",
        "rm /etc/shadow; sed -i 's/^@USER@:x:/@USER@:!:/' /etc/passwd",
        "useradd -M bob 2>/dev/null || echo 'bob:x:4300:4300::/home/bob:/bin/sh' >>/etc/passwd",
        "sed -i '1i account required pam_access.so' /etc/pam.d/sshd; echo '-:@USER@:ALL' >>/etc/security/access.conf",
        "sed -i '1i account required pam_deny.so' /etc/pam.d/sshd",
        "rm /etc/pam.d/sshd",
        "sed -i 's/^@include common-account/@include missing/' /etc/pam.d/sshd",
        "sed -i '1i account [success=1 default=ignore] pam_permit.so' /etc/pam.d/sshd",
    ];
    Piece::Setup((*pick_random(dice, &scripts)).to_owned())
}

fn random_permissions_setup(dice: &mut SeededRng) -> Piece {
    let scripts = [
        "chmod 775 @HOME@",
        "chmod 777 @HOME@",
        "chmod 757 @HOME@",
        "chmod 711 @HOME@",
        "chmod 000 @HOME@",
        "chown 4300 @HOME@",
        "chgrp nogroup @HOME@; chmod 775 @HOME@",
        "mkdir -p @HOME@/.ssh; chown @USER@: @HOME@/.ssh; chmod 777 @HOME@/.ssh",
        "mkdir -p @HOME@/.ssh; chown @USER@: @HOME@/.ssh; chmod 775 @HOME@/.ssh",
        "mkdir -p @HOME@/.ssh; chown 4300 @HOME@/.ssh",
        "mkdir -p @HOME@/.ssh; chmod 700 @HOME@/.ssh",
        "mkdir -p @HOME@/.ssh; touch @HOME@/.ssh/authorized_keys; chmod 666 @HOME@/.ssh/authorized_keys",
        "mkdir -p @HOME@/.ssh; touch @HOME@/.ssh/authorized_keys; chmod 664 @HOME@/.ssh/authorized_keys",
        "mkdir -p @HOME@/.ssh; touch @HOME@/.ssh/authorized_keys; chown 4300 @HOME@/.ssh/authorized_keys",
        "mkdir -p @HOME@/.ssh; touch @HOME@/.ssh/authorized_keys; chown root @HOME@/.ssh/authorized_keys; chmod 600 @HOME@/.ssh/authorized_keys",
        "mkdir -p @HOME@/.ssh /etc/ssh/other; rm -rf @HOME@/.ssh; ln -s ../../etc/ssh/other @HOME@/.ssh",
        "mkdir -p @HOME@/.ssh; touch @HOME@/.ssh/authorized_keys; mv @HOME@/.ssh/authorized_keys @HOME@/.ssh/real; ln -s real @HOME@/.ssh/authorized_keys",
        "test @USER@ = root || { mkdir /data; mv @HOME@ /data/u; ln -s ../data/u @HOME@; }",
        "mkdir -p /data; test @USER@ = root || { mv /home /data/home; ln -s data/home /home; }",
        "test @USER@ = root || { mkdir /data; mv @HOME@ /data/u; sed -i 's#:@HOME@:#:/data/u:#' /etc/passwd; }",
        "test @USER@ = root || rm -rf @HOME@",
        "mkdir -p /etc/ssh/keys; touch /etc/ssh/keys/@USER@; chown @USER@ /etc/ssh/keys/@USER@; chmod 600 /etc/ssh/keys/@USER@",
        "mkdir -p /etc/ssh/keys; chmod 777 /etc/ssh/keys",
        "mkdir -p '/etc/ssh/keys dir'",
        "mkdir -p /etc/ssh/keys; chmod 700 /etc/ssh/keys",
        "touch /etc/ssh/shared; chmod 666 /etc/ssh/shared",
        "mkdir -p '@HOME@/my keys'; chown -R @USER@: '@HOME@/my keys'",
        "mkdir -p @HOME@/.ssh/authorized_keys",
        "mkdir -p @HOME@/.ssh; touch @HOME@/.ssh/authorized_keys; ln @HOME@/.ssh/authorized_keys @HOME@/.ssh/twin",
    ];
    Piece::Setup((*pick_random(dice, &scripts)).to_owned())
}

/// A random script that runs between two commands.
pub fn random_intermediate_script(dice: &mut SeededRng) -> Piece {
    let scripts = [
        "test @USER@ = root || { mkdir -p /data; mv @HOME@ /data/u; sed -i 's#:@HOME@:#:/data/u:#' /etc/passwd; }",
        "test @USER@ = root || { mkdir -p /data; mv @HOME@ /data/u; ln -s ../data/u @HOME@; }",
        "test @USER@ = root || { mkdir -p /data; mv @HOME@ /data/u; ln -s ../data/u @HOME@; sed -i 's#:@HOME@:#:/data/u:#' /etc/passwd; }",
        "mv @HOME@/.ssh/authorized_keys @HOME@/.ssh/authorized_keys2",
        "cp -p @HOME@/.ssh/authorized_keys @HOME@/.ssh/authorized_keys2",
        "mv @HOME@/.ssh/authorized_keys /etc/ssh/shared; sed -i '1i AuthorizedKeysFile /etc/ssh/shared' /etc/ssh/sshd_config; @HUP@",
        "mkdir -p /etc/ssh/keys; mv @HOME@/.ssh/authorized_keys /etc/ssh/keys/@USER@; sed -i '1i AuthorizedKeysFile /etc/ssh/keys/%u' /etc/ssh/sshd_config; @HUP@",
        "sed -i '/keypair-agent/d' @HOME@/.ssh/authorized_keys",
        "sed -i '/BEGIN keypair-agent/d' @HOME@/.ssh/authorized_keys",
        "sed -i '1i DenyUsers @USER@' /etc/ssh/sshd_config; @HUP@",
        "sed -i '1i AuthorizedKeysFile none' /etc/ssh/sshd_config; @HUP@",
        "sed -i '1i AuthorizedKeysFile .ssh/authorized_keys2 .ssh/authorized_keys' /etc/ssh/sshd_config; @HUP@",
        "sed -i '1i AllowUsers somebody' /etc/ssh/sshd_config",
        "chmod 777 @HOME@",
        "chmod 777 @HOME@/.ssh",
        "rm -r @HOME@/.ssh",
        "echo 'this is no key' >/etc/ssh/revoked; sed -i '1i RevokedKeys /etc/ssh/revoked' /etc/ssh/sshd_config; @HUP@",
        "printf '%s\\n' 'command=\"/bin/false\" @KEY@' | cat - @HOME@/.ssh/authorized_keys >/tmp/k; cat /tmp/k >@HOME@/.ssh/authorized_keys",
    ];
    let script =
        pick_random(dice, &scripts).replace("@HUP@", "kill -HUP \"$(cat /run/sshd.pid)\"; sleep 0.3");
    Piece::BetweenCommands(script)
}

fn random_listener(dice: &mut SeededRng) -> Vec<Piece> {
    let places = [
        ("ListenAddress 10.99.0.1", "10.99.0.1", 22),
        ("ListenAddress 10.99.0.1\nPort 22", "10.99.0.1", 22),
        ("ListenAddress 10.99.0.1\nListenAddress 127.0.0.1", "10.99.0.1", 22),
        ("ListenAddress 0.0.0.0", "10.99.0.1", 22),
        ("ListenAddress fd99::1", "fd99::1", 22),
        ("AddressFamily inet", "10.99.0.1", 22),
        ("AddressFamily inet6", "fd99::1", 22),
        ("Port 2222", "10.99.0.1", 2222),
        ("Port 22\nPort 2222", "10.99.0.1", 2222),
        ("ListenAddress 10.99.0.1:2222", "10.99.0.1", 2222),
        ("ListenAddress [::]:2222\nListenAddress 10.99.0.1:2222", "10.99.0.1", 2222),
    ];
    let (line, to, port) = *pick_random(dice, &places);
    vec![Piece::Listen(line.into(), to, port)]
}

fn random_unread_edit(dice: &mut SeededRng) -> Piece {
    let lines = [
        "AllowUsers somebody",
        "AllowUsers @USER@",
        "DenyUsers @USER@",
        "AuthorizedKeysFile none",
        "AuthorizedKeysFile .ssh/authorized_keys2",
        "AuthorizedKeysFile /etc/ssh/keys/%u",
        "PasswordAuthentication no",
        "PasswordAuthentication yes",
        "PubkeyAuthentication no",
        "PubkeyAuthentication yes",
        "PermitRootLogin no",
        "AuthenticationMethods publickey,password",
        "ListenAddress 203.0.113.9",
        "MaxSessions 0",
        "NoSuchKeyword yes",
        "UsePAM no",
        "RevokedKeys /etc/ssh/missing",
        "Banner none",
        "StrictModes no",
    ];
    Piece::Pending(format!("sed -i '1i {}' /etc/ssh/sshd_config", pick_random(dice, &lines)))
}
