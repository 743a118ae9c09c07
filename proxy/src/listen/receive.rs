//! Finding out whether a caller speaks TLS, and receiving it over TLS where it does.

use std::pin::pin;

use tokio::net::TcpStream;

use super::serve::within;
use crate::caller::Caller;
use crate::tls::{Door, Mode, Stream};
use crate::worker::Worker;

/// The first byte of every TLS connection: a record of the handshake (RFC 8446, 5.1). No method begins with it.
const HANDSHAKE_RECORD: u8 = 0x16;

/// Which protocol was agreed upon in the handshake; `None` where there was nothing to agree upon.
pub(super) type IsH2 = Option<bool>;

/// The connection as it is spoken over; `None` where nothing comes of it.
pub(super) async fn receive(
    worker: &Worker,
    caller: &mut Caller,
    door: &Door,
    stream: TcpStream,
) -> Option<(Stream<TcpStream>, IsH2)> {
    if door.mode == Mode::Permissive && !begins_with_tls(worker, caller, &stream).await? {
        return Some((Stream::Plain(stream), None));
    }
    let (tls, listener) = (&worker.shared.tls, caller.listener);
    let timeout = worker.shared.limits.handshake_timeout;
    // Without an identity there is nothing to show: nobody can be told who this is.
    let accepting = door.accepting()?;
    match worker.handshakes.receive(&accepting, stream, timeout).await {
        Ok(received) => {
            tls.count(listener, received.outcome);
            caller.showed(received.identity);
            Some((Stream::Tls(received.stream), received.is_h2))
        }
        Err(refused) => {
            tls.refused(listener, caller.peer, &refused);
            refused.part().await;
            None
        }
    }
}

/// Looks at the first byte and leaves it where it is; `None` where none comes.
async fn begins_with_tls(worker: &Worker, caller: &Caller, stream: &TcpStream) -> Option<bool> {
    let mut first = [0];
    let peeked = within(caller, worker, pin!(stream.peek(&mut first))).await;
    matches!(peeked, Ok(Ok(1))).then_some(first[0] == HANDSHAKE_RECORD)
}
