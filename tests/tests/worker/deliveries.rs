//! Deliveries: handlers that hang, fail for long, are paused; vaults that die in mid-delivery.

use harness::cluster::temporary_folder;
use harness::upstream::Upstream;
use harness::vault_host::Vault;
use harness::{plain, wait};
use serde_json::Value;

use crate::{SOON, calls, pair, seeds, sow, status};

fn target(vault: &Vault) -> Value {
    status(vault)["targets"][0].clone()
}

#[test]
fn a_message_under_way_when_its_vault_is_killed_is_delivered_again_under_the_same_id() {
    let (folder, handler) = (temporary_folder().unwrap(), Upstream::start().unwrap());
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    let mut pair = pair(
        folder.path(),
        format!(
            "{}[[delivery]]\nname = \"shop\"\nqueue = \"orders\"\nurl = \"http://{}/hold\"\nsecret_file = \"{}\"\n\
             answer_timeout = \"10m\"\n",
            seeds(1, "orders"),
            handler.address,
            secret.display()
        ),
    );
    let vault = &mut pair.vaults[0];
    // The run itself has ended, or the other vault would begin it again.
    sow(vault, 1);
    crate::called(&handler, 1);
    vault.program().unwrap().kill().unwrap();
    handler.release();
    vault.program().unwrap().restart().unwrap();
    let delivered = wait::until("it is delivered again", SOON, || {
        let calls = calls(&handler);
        anyhow::ensure!(calls.values().map(Vec::len).sum::<usize>() >= 2, "{calls:?}");
        Ok(calls)
    });
    let delivered = delivered.unwrap();
    let (_, twice) = delivered.first_key_value().unwrap();
    assert_eq!((delivered.len(), twice.len()), (1, 2), "{delivered:?}");
    assert!(twice.iter().all(|seen| seen.body == b"event 0" && seen.header("webhook-signature").is_some()));
    wait::until("nothing is left", SOON, || {
        let target = target(vault);
        anyhow::ensure!(target["delivered"] == 1 && target["under_way"] == 0, "{target}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_paused_target_gets_nothing_until_it_is_resumed_and_unknown_names_are_told() {
    let (folder, handler) = (temporary_folder().unwrap(), Upstream::start().unwrap());
    let pair = pair(
        folder.path(),
        format!(
            "{}[[delivery]]\nname = \"shop\"\nqueue = \"orders\"\nurl = \"http://{}/\"\n",
            seeds(1, "orders"),
            handler.address
        ),
    );
    let vault = &pair.vaults[1];
    vault.command(&["worker", "pause", "shop"]).unwrap();
    sow(vault, 1);
    wait::until("the message waits", SOON, || {
        let told = vault.command(&["worker", "status"])?;
        anyhow::ensure!(told.contains("0 under way") && told.contains("PAUSED: paused by"), "{told}");
        anyhow::ensure!(told.contains("on vault-b: done"), "{told}");
        let ready = plain::expect_ok(vault.admin, "/readyz?verbose")?;
        anyhow::ensure!(ready.contains("[~] worker: shop gets nothing: paused by"), "{ready}");
        Ok(())
    })
    .unwrap();
    assert!(handler.seen().is_empty());
    vault.command(&["worker", "resume", "shop"]).unwrap();
    wait::until("it is delivered", SOON, || {
        anyhow::ensure!(handler.seen().len() == 1, "{}", status(vault));
        Ok(())
    })
    .unwrap();
    let unknown = vault.command(&["worker", "run", "weekly"]).unwrap_err();
    assert!(
        format!("{unknown:#}").contains("there is no job weekly; these are: seed-0, storage."),
        "{unknown:#}"
    );
}

/// An hour of failing, as it were: 3,600 times shorter waits.
#[test]
fn a_handler_that_hangs_and_then_fails_for_long_loses_no_message_though_the_vault_is_killed_meanwhile() {
    const MESSAGES: usize = 5;
    let (folder, handler) = (temporary_folder().unwrap(), Upstream::start().unwrap());
    let mut pair = pair(
        folder.path(),
        format!(
            "{}[[delivery]]\nname = \"shop\"\nqueue = \"orders\"\nurl = \"http://{}/hold\"\ntries = 1000\n\
             first_wait = \"10ms\"\nlongest_wait = \"300ms\"\nanswer_timeout = \"500ms\"\nconcurrency = 2\n",
            seeds(MESSAGES, "orders"),
            handler.address
        ),
    );
    let vault = &mut pair.vaults[0];
    sow(vault, MESSAGES);
    wait::until("the handler's silence is told", SOON, || {
        let target = target(vault);
        let why = target["last_failure"].as_str().unwrap_or_default();
        anyhow::ensure!(
            target["failed"].as_u64() >= Some(3) && why.contains("does not answer within"),
            "{target}"
        );
        // It is given no more than it may have at once.
        anyhow::ensure!(target["under_way"] == 2, "{target}");
        Ok(())
    })
    .unwrap();
    handler.fail(true);
    handler.release();
    for _ in 0..3 {
        let before = handler.seen().len();
        wait::until("the handler fails again and again", SOON, || {
            anyhow::ensure!(handler.seen().len() >= before + 10, "{} since {before}", handler.seen().len());
            Ok(())
        })
        .unwrap();
        vault.program().unwrap().kill().unwrap();
        vault.program().unwrap().restart().unwrap();
        vault.wait_alive().unwrap();
    }
    handler.fail(false);
    let metrics = wait::until("everything is delivered", SOON, || {
        let target = target(vault);
        anyhow::ensure!(target["delivered"] == MESSAGES && target["under_way"] == 0, "{target}");
        anyhow::ensure!(target["dead"] == 0, "{target}");
        plain::expect_ok(vault.admin, "/metrics")
    });
    let metrics = metrics.unwrap();
    assert!(metrics.contains("vault_delivery_delivered_total{target=\"shop\"} 5"), "{metrics}");
    let calls = calls(&handler);
    let mut bodies: Vec<_> =
        calls.values().map(|calls| String::from_utf8_lossy(&calls[0].body).into_owned()).collect();
    bodies.sort();
    assert_eq!(bodies, (0..MESSAGES).map(|number| format!("event {number}")).collect::<Vec<_>>());
}
