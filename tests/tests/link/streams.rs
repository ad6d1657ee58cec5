//! Shells and forwarded ports on a real machine.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::{FutureExt as _, stream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;
use tpi_controller::link::{
    Connection, connect,
    forward::{Listener, forward},
    shell::{ShellExit, ShellRequest, Window, shell},
};

use crate::rig::{Agent, PATIENCE, Rig, run};

const WAITS: &str = "#!/bin/bash\nwhile [ ! -e \"$RIG/stop\" ]; do sleep 0.05; done\n";

async fn connected() -> Result<(Rig, Agent, Connection)> {
    let rig = Rig::new(WAITS, 1).await?;
    let agent = rig.start("m", true)?;
    rig.identity(run(0, 1)).await?;
    rig.status(0, |status| {
        matches!(status.state, tpi_proto::state::SlotState::Active { phase: tpi_proto::state::Phase::Run })
    })
    .await?;
    rig.user.publish(&rig.store, &rig.task).await?;
    let connection = connect(&rig.store, &rig.task, run(0, 1), &rig.user).await?;
    Ok((rig, agent, connection))
}

fn bash(script: &str) -> Vec<String> {
    ["bash", "-c", script].map(str::to_owned).to_vec()
}

/// Runs a command without a terminal.
async fn piped(connection: &Connection, script: &str, input: &[u8]) -> Result<(ShellExit, Vec<u8>, Vec<u8>)> {
    let request = ShellRequest { command: bash(script), ..ShellRequest::default() };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let work = shell(connection, request, input, &mut out, &mut err, stream::pending());
    let exit = tokio::time::timeout(PATIENCE, work).await??;
    Ok((exit, out, err))
}

#[tokio::test(flavor = "multi_thread")]
async fn shells_carry_bytes_windows_and_exits() -> Result<()> {
    let (rig, mut agent, connection) = connected().await?;

    // Without a terminal: bytes unchanged, streams apart, input to its end, the script's variables.
    let input: Vec<u8> = (0..=255).cycle().take(1_000_000).collect();
    let (exit, out, err) = piped(&connection, "cat; echo oops >&2; exit 7", &input).await?;
    assert_eq!((exit, out == input, err.as_slice()), (ShellExit::Code(7), true, b"oops\n".as_slice()));
    let (exit, out, _) = piped(&connection, "echo $TPI_SLOT $TPI_TASK; test -t 0 || kill -9 $$", b"").await?;
    assert_eq!((exit, out.as_slice()), (ShellExit::Signal(9), b"0 true\n".as_slice()));
    // What is left behind does not hold the shell up.
    let (exit, out, _) = piped(&connection, "sleep 300 & echo started", b"").await?;
    assert_eq!((exit, out.as_slice()), (ShellExit::Code(0), b"started\n".as_slice()));
    let missing = ShellRequest { command: vec!["/no/such/program".to_owned()], ..ShellRequest::default() };
    let refused = shell(&connection, missing, &b""[..], Vec::new(), Vec::new(), stream::pending()).await;
    let refused = refused.expect_err("no such program").to_string();
    assert!(refused.contains("/no/such/program"), "{refused}");

    // With one: a terminal of the size asked for, and of the size it gets later.
    let (mut typed, keyboard) = tokio::io::duplex(64);
    let (screen, mut shown) = tokio::io::duplex(4096);
    let request = ShellRequest {
        command: bash(
            "test -t 0 && echo $TERM; stty size; read -r _; stty size; read -r line; echo \"got $line\"; exit 3",
        ),
        term: "vt100".to_owned(),
        window: Some(Window { rows: 33, columns: 77 }),
    };
    let (resize, resizes) = tokio::sync::mpsc::channel(1);
    let resizes =
        Box::pin(stream::unfold(
            resizes,
            |mut resizes| async move { Some((resizes.recv().await?, resizes)) },
        ));
    let connection_ = connection.clone();
    let running = tokio::spawn(async move {
        shell(&connection_, request, keyboard, screen, tokio::io::sink(), resizes).await
    });
    let mut seen = String::new();
    wait_for(&mut shown, &mut seen, "33 77").await?;
    assert!(seen.contains("vt100"), "{seen}");
    resize.send(Window { rows: 50, columns: 100 }).await?;
    typed.write_all(b"\n").await?;
    wait_for(&mut shown, &mut seen, "50 100").await?;
    typed.write_all(b"words\n").await?;
    wait_for(&mut shown, &mut seen, "got words").await?;
    assert_eq!(tokio::time::timeout(PATIENCE, running).await???, ShellExit::Code(3));

    // Dropping it kills the process.
    let request =
        ShellRequest { command: bash("echo $$ > \"$RIG/pid\"; exec sleep 1000"), ..ShellRequest::default() };
    let (_open, keyboard) = tokio::io::duplex(64);
    let mut dropped = Box::pin(shell(
        &connection,
        request,
        keyboard,
        tokio::io::sink(),
        tokio::io::sink(),
        stream::pending(),
    ));
    let pid = loop {
        assert!((&mut dropped).now_or_never().is_none(), "the shell runs on");
        if let Ok(pid) = std::fs::read_to_string(rig.path("pid"))
            && pid.ends_with('\n')
        {
            break pid.trim().to_owned();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    drop(dropped);
    let gone = async {
        while std::path::Path::new(&format!("/proc/{pid}")).exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.context("the process lives on")?;

    drop(connection);
    std::fs::write(rig.path("stop"), "")?;
    agent.ended().await
}

async fn wait_for(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    seen: &mut String,
    wanted: &str,
) -> Result<()> {
    let mut buffer = [0; 256];
    while !seen.contains(wanted) {
        let count = tokio::time::timeout(PATIENCE, from.read(&mut buffer))
            .await
            .with_context(|| format!("waiting for {wanted:?} after {seen:?}"))??;
        anyhow::ensure!(count > 0, "ended after {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded_both_ways_and_closed_on_their_own() -> Result<()> {
    let (rig, mut agent, connection) = connected().await?;
    // Reads to the end, then answers: only works when one direction can be closed alone.
    let server = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = server.local_addr()?.port();
    let answering = tokio::spawn(async move {
        for _ in 0..3 {
            let (mut tcp, _) = server.accept().await?;
            let mut got = Vec::new();
            tcp.read_to_end(&mut got).await?;
            got.reverse();
            tcp.write_all(&got).await?;
        }
        std::io::Result::Ok(())
    });
    let sent: Vec<u8> = (0..2_000_000u32).map(|i| (i % 251) as u8).collect();
    let wanted: Vec<u8> = sent.iter().rev().copied().collect();

    let (near, far) = tokio::io::duplex(1024);
    let (mut read, mut write) = tokio::io::split(near);
    let carried = forward(&connection, "localhost", port, far);
    let asking = async {
        write.write_all(&sent).await?;
        write.shutdown().await?;
        let mut got = Vec::new();
        read.read_to_end(&mut got).await?;
        anyhow::Ok(got)
    };
    let both = async { tokio::join!(carried, asking) };
    let (carried, got) = tokio::time::timeout(PATIENCE, both).await?;
    carried?;
    assert!(got? == wanted);

    // A local port, two connections at once.
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await?;
    let address = listener.local_addr();
    let stop = CancellationToken::new();
    let (failures, mut failed) = tokio::sync::mpsc::channel(16);
    let serving = listener.serve(
        &rig.store,
        &rig.task,
        run(0, 1),
        &rig.user,
        "",
        port,
        stop.clone(),
        move |error: &(dyn std::error::Error + 'static)| drop(failures.try_send(error.to_string())),
    );
    let ask = || async {
        let mut tcp = TcpStream::connect(address).await?;
        let (mut read, mut write) = tcp.split();
        let mut got = Vec::new();
        let (written, read) = tokio::join!(
            async {
                write.write_all(&sent).await?;
                write.shutdown().await
            },
            read.read_to_end(&mut got)
        );
        written?;
        read?;
        anyhow::Ok(got)
    };
    let asking = async {
        let (one, two) = tokio::join!(ask(), ask());
        assert!(one? == wanted && two? == wanted);
        answering.await??;
        // Nothing listens there any more: the connection is closed, and the cause is told.
        let mut tcp = TcpStream::connect(address).await?;
        let mut got = Vec::new();
        drop(tcp.read_to_end(&mut got).await);
        assert!(got.is_empty());
        let told = failed.recv().await.context("a failure")?;
        assert!(told.contains("refused"), "{told}");
        stop.cancel();
        anyhow::Ok(())
    };
    let ((), asked) = tokio::time::timeout(PATIENCE, async { tokio::join!(serving, asking) }).await?;
    asked?;

    for (host, cause) in [("db.example", "localhost"), ("127.0.0.1", "127.0.0.1:1")] {
        let error = forward(&connection, host, 1, tokio::io::duplex(1).0).await.expect_err("refused");
        assert!(error.to_string().contains(cause), "{error}");
    }
    drop(connection);
    std::fs::write(rig.path("stop"), "")?;
    agent.ended().await
}
