//! What the codec promises: recorded connections read and write to the same bytes, so does any
//! command, and no bytes do harm.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use proptest::prelude::*;

use super::properties::{Properties, Value};
use super::sample::{Dice, Sample as _};
use super::wire::{Reader, Structure as _, Writer};
use super::*;

/// Each recorded half of a connection by its name.
fn recordings() -> Vec<(String, Bytes)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/openwire");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut halves: Vec<_> = files
        .map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap().into()))
        .filter(|(name, _)| name != "README.md")
        .collect();
    halves.sort();
    assert!(halves.len() > 50, "the recordings are not where this test looks");
    halves
}

/// The version that a recording's name tells.
fn recorded_version(name: &str) -> Version {
    match name.get(..9) {
        Some("version10") => Version::V10,
        Some("version11") => Version::V11,
        _ => Version::V12,
    }
}

/// The recorded frames after the greeting, without their lengths, and their versions.
fn recorded_frames() -> Vec<(Version, Bytes)> {
    let mut frames = Vec::new();
    for (name, mut bytes) in recordings() {
        let mut greeted = false;
        while !bytes.is_empty() {
            let length = usize::try_from(bytes.get_u32()).unwrap();
            let frame = bytes.split_to(length);
            if std::mem::replace(&mut greeted, true) {
                frames.push((recorded_version(&name), frame));
            }
        }
    }
    frames
}

fn throws() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..400)
}

fn all_of(outgoing: &mut Outgoing) -> Bytes {
    outgoing.copy_to_bytes(outgoing.remaining())
}

fn peer(offer: &Offer) -> (Incoming, Outgoing) {
    let mut incoming = Incoming::new(offer.clone());
    let mut outgoing = Outgoing::new(&offer.greeting()).unwrap();
    incoming.buffer().extend_from_slice(&all_of(&mut outgoing));
    let Ok(Some(Arrival::Greeting(_, settled))) = incoming.arrival() else { panic!("a greeting is first") };
    outgoing.settle(&settled);
    (incoming, outgoing)
}

#[test]
fn every_recorded_connection_reads_and_writes_to_the_same_bytes_in_any_portions() {
    for (name, bytes) in recordings() {
        for portion in [1, 7, 1_460, bytes.len()] {
            let offer = Offer { version: recorded_version(&name), ..Offer::default() };
            let mut incoming = Incoming::new(offer);
            let mut outgoing = None;
            for part in bytes.chunks(portion) {
                incoming.buffer().extend_from_slice(part);
                while let Some(arrival) = incoming.arrival().unwrap_or_else(|error| panic!("{name}: {error}"))
                {
                    match (arrival, &mut outgoing) {
                        (Arrival::Greeting(greeting, settled), None) => {
                            outgoing.insert(Outgoing::new(&greeting).unwrap()).settle(&settled);
                        }
                        (Arrival::Command(command), Some(outgoing)) => outgoing.push(&command).unwrap(),
                        (arrival, _) => panic!("{name}: {arrival:?}"),
                    }
                }
            }
            let mut outgoing = outgoing.unwrap_or_else(|| panic!("{name} has no greeting"));
            assert!(all_of(&mut outgoing) == bytes, "{name} in portions of {portion}");
        }
    }
}

#[test]
fn the_recordings_hold_every_command_that_travels() {
    let seen: BTreeSet<_> = recorded_frames().iter().map(|(_, frame)| frame[0]).collect();
    let unseen: Vec<_> = (2..=92)
        .filter(|code| !seen.contains(code))
        .filter_map(types::name)
        .filter(|name| !name.starts_with("Journal") && !name.contains("Partial"))
        .collect();
    // Nested ones, what only a broker with replicas says, and what nothing at all says any more.
    let nested = ["SubscriptionInfo", "NetworkBridgeFilter"];
    let rare =
        ["ControlCommand", "DataResponse", "DiscoveryEvent", "ReplayCommand", "MessageDispatchNotification"];
    let silent: Vec<_> =
        unseen.into_iter().filter(|name| !nested.contains(name) && !rare.contains(name)).collect();
    assert!(silent.is_empty(), "in no recording: {silent:?}");
}

#[test]
fn every_recorded_map_of_properties_reads_and_writes_to_the_same_bytes() {
    let mut maps = 0;
    for (version, frame) in recorded_frames() {
        let message = match Reader::new(frame, version).whole().unwrap() {
            Command::Message(message) => *message,
            Command::MessageDispatch(dispatch) if dispatch.message.is_some() => dispatch.message.unwrap(),
            _ => continue,
        };
        let body = Some(message.content).filter(|_| message.kind == MessageKind::Map && !message.compressed);
        for map in [message.properties, body.flatten()].into_iter().flatten() {
            assert_eq!(Properties::read(&map).unwrap().to_bytes(), map);
            maps += 1;
        }
    }
    assert!(maps > 100, "only {maps}");
}

#[test]
fn recorded_bodies_are_read_compressed_or_not() {
    let mut bodies = Vec::new();
    for (version, frame) in recorded_frames() {
        if let Command::Message(message) = Reader::new(frame, version).whole().unwrap() {
            bodies.push((message.compressed, message.body(20_000).ok()));
        }
    }
    for (compressed, body) in [
        (false, Body::Text("h\u{e9}llo \u{1f600}".to_owned())),
        (false, Body::Text(String::new())),
        (false, Body::Empty),
        (false, Body::Bytes(Bytes::from_static(b"\0\x01\x02\xff\0\x01x\x3f\xf0\0\0\0\0\0\0"))),
        (true, Body::Text("z".repeat(3_000))),
        (true, Body::Bytes(vec![0; 2_000].into())),
    ] {
        assert!(bodies.contains(&(compressed, Some(body.clone()))), "{compressed} {body:?}");
    }
}

#[test]
fn no_recorded_frame_is_taken_for_whole_when_its_end_is_missing() {
    let mut tried = BTreeSet::new();
    for (version, frame) in recorded_frames() {
        // One of each type in all its lengths.
        if tried.insert(frame[0]) {
            for length in 0..frame.len() {
                let cut = Reader::new(frame.slice(..length), version).whole::<Command>();
                assert!(cut.is_err(), "{length} of {} bytes are {cut:?}", frame.len());
            }
        }
    }
}

proptest! {
    #[test]
    fn any_command_reads_back(throws in throws()) {
        let command = Command::sample(&mut Dice::new(throws));
        let (mut incoming, mut outgoing) = peer(&Offer::default());
        outgoing.push(&command).unwrap();
        incoming.buffer().extend_from_slice(&all_of(&mut outgoing));
        prop_assert_eq!(incoming.arrival(), Ok(Some(Arrival::Command(command))));
        prop_assert_eq!(incoming.arrival(), Ok(None));
    }

    #[test]
    fn any_message_is_kept_and_given_back(throws in throws()) {
        let message = Message::sample(&mut Dice::new(throws));
        prop_assert_eq!(Message::from_bytes(message.to_bytes().unwrap()), Ok(message));
    }

    #[test]
    fn any_part_of_a_command_is_refused(throws in throws(), part in any::<prop::sample::Index>()) {
        let whole = Writer::contiguous(&Command::sample(&mut Dice::new(throws)), Version::V12).unwrap();
        let length = part.index(whole.len());
        prop_assert!(Reader::new(whole.slice(..length), Version::V12).whole::<Command>().is_err());
    }

    #[test]
    fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        fuzz(&bytes);
    }

    #[test]
    fn no_damage_to_a_command_does_harm(throws in throws(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = Writer::contiguous(&Command::sample(&mut Dice::new(throws)), Version::V12).unwrap().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        fuzz(&bytes);
    }
}

#[test]
fn no_damage_to_a_recorded_frame_does_harm() {
    for (index, (_, frame)) in recorded_frames().into_iter().enumerate() {
        let mut bytes = frame.to_vec();
        // Elsewhere in each frame, and each of the damages that lengths and flags suffer.
        let at = index * 31 % bytes.len();
        for damage in [0, 1, 2, 0x7F, 0x80, 0xFF] {
            bytes[at] = damage;
            fuzz(&bytes);
        }
    }
}

#[test]
fn a_length_is_not_allocated_before_its_bytes_are_there() {
    let (mut incoming, _) = peer(&Offer::default());
    incoming.buffer().extend_from_slice(&(90_u32 << 20).to_be_bytes());
    for _ in 0..1_000 {
        assert_eq!(incoming.arrival(), Ok(None));
        let buffer = incoming.buffer();
        assert!(buffer.capacity() <= 256 << 10, "{} bytes for {} that came", buffer.capacity(), buffer.len());
        buffer.extend_from_slice(&[0; 60]);
    }
}

#[test]
fn a_large_frame_makes_room_as_it_arrives() {
    let (mut incoming, mut outgoing) = peer(&Offer::default());
    let mut message = message();
    message.content = Some(Bytes::from(vec![5; 3 << 20]));
    outgoing.push(&message.clone().into()).unwrap();
    let mut reads = 0;
    while outgoing.has_remaining() {
        // As a socket does: as much as there is room for.
        let buffer = incoming.buffer();
        let room = (buffer.capacity() - buffer.len()).min(outgoing.remaining());
        buffer.extend_from_slice(&outgoing.copy_to_bytes(room));
        reads += 1;
    }
    assert_eq!(incoming.arrival(), Ok(Some(Arrival::Command(message.into()))));
    assert!(reads < 40, "{reads} reads");
}

#[test]
fn a_frame_over_the_limit_is_refused_by_its_length_alone() {
    let (mut incoming, _) = peer(&Offer { max_frame: 1_000, ..Offer::default() });
    incoming.buffer().extend_from_slice(&1_001_u32.to_be_bytes());
    let refusal = incoming.arrival().unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "a frame that is no OpenWire command: a frame of 1001 bytes is over the limit of 1000"
    );
}

#[test]
fn who_is_unknown_is_given_less_room_and_who_is_known_gets_no_more_than_was_settled() {
    let (mut incoming, _) = peer(&Offer { max_frame: 1_000, ..Offer::default() });
    incoming.limit(100);
    incoming.buffer().extend_from_slice(&500_u32.to_be_bytes());
    let fault = Fault::TooLong { length: 500, limit: 100 };
    assert_eq!(incoming.arrival(), Err(fault.into()));
    incoming.limit(usize::MAX);
    assert_eq!(incoming.arrival(), Ok(None), "now it waits for the rest");
    incoming.buffer().clear();
    incoming.buffer().extend_from_slice(&1_001_u32.to_be_bytes());
    let fault = Fault::TooLong { length: 1_001, limit: 1_000 };
    assert_eq!(incoming.arrival(), Err(fault.into()));
}

#[test]
fn a_password_is_never_shown() {
    let mut info = ConnectionInfo::new(ConnectionId { value: name("c") }, name("c"));
    info.password = Some(Password::new(name("open sesame")));
    let shown = format!("{info:?} {:?}", Command::from(info.clone()));
    assert!(!shown.contains("sesame") && shown.contains("hidden"), "{shown}");
}

/// Bytes that a map of so many entries takes, each of an empty name and this value.
fn many(number: usize, value: &[u8]) -> Bytes {
    let mut bytes = BytesMut::from(&i32::try_from(number).unwrap().to_be_bytes()[..]);
    (0..number).for_each(|_| bytes.extend_from_slice(&[&[0, 0], value].concat()));
    bytes.freeze()
}

#[test]
fn a_map_of_more_entries_than_anybody_sets_is_refused_by_its_number_alone() {
    assert_eq!(Properties::read(&many(65_536, &[0])).unwrap().iter().count(), 65_536);
    let fault = Fault::TooMany { number: 65_537, most: 65_536 };
    assert_eq!(Properties::read(&many(65_537, &[0])), Err(fault));
    // As many as there could be, and no more room than the bytes that are there could fill.
    assert_eq!(Properties::read(&many(65_536, &[0]).slice(..7)), Err(Fault::Truncated));
}

#[test]
fn maps_and_lists_in_a_map_are_looked_through_and_take_no_memory_of_their_own() {
    // A list of a list of nulls, and a map of one.
    let list = [&[12, 0, 0, 0, 1, 12, 0, 0, 0, 3][..], &[0, 0, 0]].concat();
    let map = [11, 0, 0, 0, 1, 0, 1, b'k', 1, 1];
    for nested in [&list[..], &map] {
        let bytes = many(2, nested);
        let read = Properties::read(&bytes).unwrap();
        assert_eq!(read.to_bytes(), bytes);
        let (Value::List(inside) | Value::Map(inside)) = read.value("").unwrap() else { panic!("{read:?}") };
        assert!(bytes.as_ptr_range().contains(&inside.as_ptr()), "it was copied");
    }
    let wrong = [&[12, 0, 0, 0, 1, 12, 0, 0, 0, 3][..], &[0, 99, 0]].concat();
    assert_eq!(Properties::read(&many(1, &wrong)), Err(Fault::UnknownValue(99)));
    let deep = [12, 0, 0, 0, 1].repeat(20);
    assert_eq!(Properties::read(&many(1, &deep)), Err(Fault::TooDeep));
}

#[test]
fn a_frame_of_more_structures_than_anything_real_has_is_refused() {
    let mut info = ConnectionInfo::new(ConnectionId { value: name("c") }, name("c"));
    for (number, taken) in [(16_000, true), (16_384, false)] {
        info.broker_path = Some(vec![BrokerId { value: name("") }; number]);
        let bytes = Writer::contiguous(&info, Version::V12).unwrap();
        let read = Reader::new(bytes, Version::V12).whole::<Command>();
        assert_eq!(read.is_ok(), taken, "{number}");
    }
}

#[test]
fn a_message_over_the_limit_is_passed_over_in_any_portions_and_the_next_command_arrives() {
    let (_, mut generous) = peer(&Offer::default());
    let mut large = message();
    large.head = Head { command_id: 7, response_required: true };
    large.content = Some(Bytes::from(vec![1; 30_000]));
    let alive = Command::from(KeepAliveInfo { head: Head { command_id: 8, response_required: true } });
    generous.push(&large.into()).unwrap();
    generous.push(&alive).unwrap();
    let bytes = all_of(&mut generous);
    for portion in [1, 7, 1_460, bytes.len()] {
        let (mut incoming, _) = peer(&Offer { max_frame: 1_000, ..Offer::default() });
        incoming.pass_over();
        let mut arrived = Vec::new();
        for part in bytes.chunks(portion) {
            incoming.buffer().extend_from_slice(part);
            while let Some(arrival) = incoming.arrival().unwrap() {
                arrived.push(arrival);
            }
            let capacity = incoming.buffer().capacity();
            assert!(capacity <= 256 << 10, "{capacity}");
            assert!(incoming.announced().is_none_or(|length| length < 1_000), "room is taken for it");
        }
        let [Arrival::Oversized { head, length, limit }, Arrival::Command(next)] = &arrived[..] else {
            panic!("{arrived:?}")
        };
        assert_eq!((head.command_id, head.response_required, *limit), (7, true, 1_000));
        assert!(*length > 30_000 && *next == alive);
    }
    // What is no message was never sent in earnest.
    let (mut incoming, _) = peer(&Offer { max_frame: 1_000, ..Offer::default() });
    incoming.pass_over();
    incoming.buffer().extend_from_slice(&[0, 1, 0, 0, 10, 0, 0, 0, 1, 0]);
    assert_eq!(incoming.arrival(), Err(Fault::TooLong { length: 65_536, limit: 1_000 }.into()));
}

#[test]
fn a_command_over_the_limit_is_not_sent_and_the_next_one_is() {
    let (mut incoming, mut outgoing) = peer(&Offer { max_frame: 20_000, ..Offer::default() });
    for size in [19_999, 30_000] {
        let mut large = message();
        large.content = Some(Bytes::from(vec![1; size]));
        assert!(matches!(outgoing.push(&large.into()), Err(EncodeError::TooLong { limit: 20_000, .. })));
        assert_eq!(outgoing.remaining(), 0);
    }
    let alive = Command::from(KeepAliveInfo { head: Head { command_id: 3, response_required: true } });
    outgoing.push(&alive).unwrap();
    incoming.buffer().extend_from_slice(&all_of(&mut outgoing));
    assert_eq!(incoming.arrival(), Ok(Some(Arrival::Command(alive))));
}

#[test]
fn a_large_body_is_sent_from_where_it_lies() {
    let (_, mut outgoing) = peer(&Offer::default());
    let body = Bytes::from(vec![1; 1 << 20]);
    let mut large = message();
    large.content = Some(body.clone());
    outgoing.push(&large.into()).unwrap();
    let mut slices = [std::io::IoSlice::new(&[]); 8];
    let number = outgoing.chunks_vectored(&mut slices);
    assert!(slices[..number].iter().any(|slice| slice.as_ptr() == body.as_ptr()), "the body was copied");
}

#[test]
fn a_body_is_read_from_where_it_arrived() {
    let (mut incoming, mut outgoing) = peer(&Offer::default());
    let mut large = message();
    large.content = Some(Bytes::from(vec![1; 5_000]));
    outgoing.push(&large.into()).unwrap();
    incoming.buffer().extend_from_slice(&all_of(&mut outgoing));
    let arrived = incoming.buffer().as_ptr_range();
    let Ok(Some(Arrival::Command(Command::Message(message)))) = incoming.arrival() else {
        panic!("a message")
    };
    assert!(arrived.contains(&message.content.unwrap().as_ptr()), "the body was copied");
}

#[test]
fn another_protocol_is_told_from_openwire_by_its_first_bytes() {
    for opening in [
        "GET / HTTP/1.1\r\n\r\n",
        "CONNECT\naccept-version:1.2\n\n\0",
        "\x16\x03\x01\x02\0\x01\0",
        "AMQP\0\x01\0\0",
    ] {
        let mut incoming = Incoming::new(Offer::default());
        incoming.buffer().extend_from_slice(opening.as_bytes());
        assert_eq!(incoming.arrival(), Err(Fault::NotOpenWire.into()), "{opening:?}");
    }
    // A command before the greeting.
    let (_, mut outgoing) = peer(&Offer::default());
    outgoing.push(&message().into()).unwrap();
    let mut incoming = Incoming::new(Offer::default());
    incoming.buffer().extend_from_slice(&all_of(&mut outgoing));
    assert_eq!(incoming.arrival(), Err(Fault::NotOpenWire.into()));
}

#[test]
fn both_sides_settle_on_the_lower_version_and_the_smaller_limits() {
    let ours = Offer { max_frame: 64 << 20, ..Offer::default() };
    let theirs = Offer { version: Version::V11, inactivity: Duration::from_secs(5), ..Offer::default() };
    let settled = ours.settle(&theirs.greeting()).unwrap();
    assert_eq!(settled, theirs.settle(&ours.greeting()).unwrap());
    assert_eq!(settled.version, Version::V11);
    assert_eq!(settled.max_frame, 64 << 20);
    assert_eq!(settled.inactivity, Some(Duration::from_secs(5)));

    let silent = ours.settle(&WireFormatInfo { version: 99, properties: None }).unwrap();
    assert_eq!((silent.version, silent.inactivity, silent.max_frame), (Version::V12, None, 64 << 20));
    let old = ours.settle(&WireFormatInfo { version: 9, properties: None });
    assert_eq!(old, Err(Fault::Version(9).into()));
    let torn = ours.settle(&WireFormatInfo { version: 12, properties: Some(Bytes::from_static(&[0, 0])) });
    let told = "a frame that is no OpenWire command: WireFormatInfo.properties: it ends in the middle";
    assert_eq!(torn.unwrap_err().to_string(), told);
}

#[test]
fn a_type_that_is_not_spoken_is_refused_by_name() {
    let replay = Bytes::from_static(&[65, 0, 0, 0, 1, 0]);
    let refusal = Reader::new(replay, Version::V12).whole::<Command>().unwrap_err();
    assert_eq!(refusal.to_string(), "a frame that is no OpenWire command: ReplayCommand is not spoken here");
}

#[test]
fn a_fault_names_the_field_that_it_is_in() {
    // A consumer whose destination is a connection's id.
    let mut bytes = BytesMut::from(&[5, 0, 0, 0, 1, 0, 1, 122, 1, 0, 1, b'c'][..]);
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(&[0, 1, 120]);
    let refusal = Reader::new(bytes.freeze(), Version::V12).whole::<Command>().unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "a frame that is no OpenWire command: ConsumerInfo.destination: ConnectionId stands where a destination belongs"
    );
}

#[test]
fn structures_that_lie_too_deep_in_each_other_are_refused() {
    let mut deep = DataStructure::ConnectionId(ConnectionId { value: name("c") });
    for _ in 0..8 {
        let head = Head::default();
        let response = DataResponse { head, correlation_id: 0, data: Some(deep) };
        deep = DataStructure::Command(Box::new(response.into()));
    }
    let bytes = Writer::contiguous(&deep, Version::V12).unwrap();
    let refusal = Reader::new(bytes, Version::V12).whole::<Command>().unwrap_err();
    let fault = Fault::TooDeep;
    assert_eq!(refusal, DecodeError::Field { structure: "DataResponse", field: "data", fault });
}

#[test]
fn a_durable_subscription_tells_no_local_since_version_11_only() {
    let subscription = SubscriptionInfo {
        client_id: Some(name("c")),
        destination: Some(Destination::topic(name("t"))),
        selector: None,
        name: Some(name("n")),
        subscribed_destination: None,
        no_local: true,
    };
    let [new, old] = [Version::V11, Version::V10].map(|it| Writer::contiguous(&subscription, it).unwrap());
    assert_eq!(new.len(), old.len() + 1);
    let read: SubscriptionInfo = Reader::new(old, Version::V10).whole().unwrap();
    assert_eq!(read, SubscriptionInfo { no_local: false, ..subscription });
}

#[test]
fn properties_are_read_set_and_taken_away_by_name() {
    let mut properties = Properties::default();
    properties.set(name("aLong"), Value::Long(-7));
    properties.set(name("a"), Value::string("héllo"));
    properties.set(name("flag"), Value::Boolean(true));
    properties.set(name("a"), Value::string("again"));
    let mut read = Properties::read(&properties.to_bytes()).unwrap();
    assert_eq!(read, properties);
    assert_eq!(read.number("aLong"), Some(-7));
    assert_eq!(read.text("a").as_deref(), Some("again"));
    assert_eq!(read.flag("flag"), Some(true));
    assert_eq!(read.text("flag"), None);
    read.remove("aLong");
    assert_eq!(read.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>(), ["a", "flag"]);
    assert!(matches!(Value::string(&"x".repeat(9_000)), Value::BigString(_)), "as Java writes it");
}

/// Was this said in a recording, whatever its own number?
fn was_said(wanted: &Command) -> bool {
    let mut wanted = wanted.clone();
    recorded_frames().into_iter().any(|(version, frame)| {
        let command = Reader::new(frame, version).whole::<Command>().unwrap();
        *wanted.head_mut() = command.head();
        command == wanted
    })
}

#[test]
fn what_is_usually_said_is_what_the_real_broker_and_client_say() {
    let asked = Head { command_id: 2, response_required: true };
    assert!(was_said(&Response::to(asked).into()));

    let why = Throwable::new("java.lang.SecurityException", "User name [joe] or password is invalid.");
    let first = Head { command_id: 1, response_required: true };
    assert!(was_said(&ExceptionResponse::to(first, why).into()));

    let mut dispatches = 0;
    for (version, frame) in recorded_frames() {
        let command = Reader::new(frame, version).whole().unwrap();
        let Command::MessageDispatch(dispatch) = command else { continue };
        let consumer = dispatch.consumer_id.clone();
        let same = match dispatch.message.clone() {
            Some(message) => MessageDispatch::new(consumer, message),
            None => MessageDispatch::end(consumer),
        };
        assert_eq!(same, *dispatch);
        dispatches += 1;
    }
    assert!(dispatches > 100, "only {dispatches}");
}

#[test]
fn ids_show_as_java_shows_them() {
    let producer = ProducerId { connection: name("ID:host-1-2:1"), value: 3, session: 2 };
    assert_eq!(producer.message(9).to_string(), "ID:host-1-2:1:2:3:9");
    let stranger = MessageId { text_view: Some(name("order-7")), ..producer.message(9) };
    assert_eq!(stranger.to_string(), "ID:order-7");
    assert_eq!(Destination::queue(name("a.b")).to_string(), "queue://a.b");
    assert_eq!(producer.code(), 123);
}

fn name(text: &str) -> Text {
    Text::shortened(text)
}

fn message() -> Message {
    let producer = ProducerId { connection: name("ID:c"), value: 1, session: 1 };
    Message::new(MessageKind::Bytes, producer.message(1), Destination::queue(name("q")))
}
