import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.Serializable;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Collections;
import java.util.Enumeration;
import java.util.HexFormat;
import java.util.Map;
import java.util.Random;
import javax.jms.BytesMessage;
import javax.jms.DeliveryMode;
import javax.jms.JMSException;
import javax.jms.MapMessage;
import javax.jms.Message;
import javax.jms.MessageEOFException;
import javax.jms.Session;
import javax.jms.StreamMessage;
import javax.jms.TextMessage;
import org.apache.activemq.command.ActiveMQBytesMessage;
import org.apache.activemq.command.ActiveMQDestination;
import org.apache.activemq.command.ActiveMQMessage;
import org.apache.activemq.command.ActiveMQObjectMessage;
import org.apache.activemq.command.ActiveMQStreamMessage;
import org.apache.activemq.command.BrokerId;

/** Messages as JSON: written from it, and described in it with all that an application can see. */
final class Letter {
    /** A longer body is described by its length and digest alone. */
    private static final int LONGEST_SHOWN = 64 * 1024;

    private Letter() {}

    static Message write(Session session, JsonNode letter) throws JMSException {
        ActiveMQMessage message = (ActiveMQMessage) body(session, letter.get("body"));
        message.setJMSCorrelationID(letter.path("correlation_id").asText(null));
        message.setJMSType(letter.path("kind").asText(null));
        if (letter.hasNonNull("reply_to")) {
            message.setJMSReplyTo(ActiveMQDestination.createDestination(
                    letter.get("reply_to").asText(),
                    ActiveMQDestination.QUEUE_TYPE));
        }
        if (letter.hasNonNull("group")) {
            message.setGroupID(letter.get("group").asText());
            message.setGroupSequence(letter.get("group_sequence").asInt());
        }
        for (Map.Entry<String, JsonNode> property : Values.fields(letter.get("properties"))) {
            message.setObjectProperty(property.getKey(), Values.read(property.getValue()));
        }
        return message;
    }

    private static Message body(Session session, JsonNode body) throws JMSException {
        if (body.isTextual()) {
            return session.createMessage();
        }
        Map.Entry<String, JsonNode> only = body.fields().next();
        JsonNode content = only.getValue();
        switch (only.getKey()) {
            case "text":
                return session.createTextMessage(content.asText(null));
            case "bytes":
                BytesMessage bytes = session.createBytesMessage();
                bytes.writeBytes(HexFormat.of().parseHex(content.asText()));
                return bytes;
            case "filled":
                BytesMessage filled = session.createBytesMessage();
                filled.writeBytes(fill(content.asInt()));
                return filled;
            case "map":
                MapMessage map = session.createMapMessage();
                for (Map.Entry<String, JsonNode> entry : Values.fields(content)) {
                    map.setObject(entry.getKey(), Values.read(entry.getValue()));
                }
                return map;
            case "stream":
                StreamMessage stream = session.createStreamMessage();
                for (JsonNode value : content) {
                    stream.writeObject(Values.read(value));
                }
                return stream;
            case "object":
                return session.createObjectMessage((Serializable) Values.read(content));
            default:
                throw new IllegalArgumentException("no such body: " + only.getKey());
        }
    }

    /** So many bytes that do not compress, the same ones each time. */
    static byte[] fill(int length) {
        byte[] bytes = new byte[length];
        new Random(length).nextBytes(bytes);
        return bytes;
    }

    static ObjectNode describe(Message message) throws JMSException {
        // Reading a body moves a place in it, and what was just sent is open for writing.
        ActiveMQMessage letter = (ActiveMQMessage) ((ActiveMQMessage) message).copy();
        // A text is packed only when it leaves: whether it travels compressed is known then.
        letter.storeContent();
        ObjectNode told = Main.JSON.createObjectNode()
                .put("id", letter.getJMSMessageID())
                .put("destination", Channel.qualified(letter.getJMSDestination()))
                .put("persistent", letter.getJMSDeliveryMode() == DeliveryMode.PERSISTENT)
                .put("priority", letter.getJMSPriority())
                .put("timestamp", letter.getJMSTimestamp())
                .put("expiration", letter.getJMSExpiration())
                .put("correlation_id", letter.getJMSCorrelationID())
                .put("reply_to", Channel.qualified(letter.getJMSReplyTo()))
                .put("kind", letter.getJMSType())
                .put("group", letter.getGroupID())
                .put("group_sequence", letter.getGroupSequence())
                .put("redelivered", letter.getJMSRedelivered())
                .put("delivery_count", letter.getRedeliveryCounter() + 1)
                .put("compressed", letter.isCompressed());
        ArrayNode path = told.putArray("broker_path");
        if (letter.getBrokerPath() != null) {
            for (BrokerId broker : letter.getBrokerPath()) {
                path.add(broker.getValue());
            }
        }
        ObjectNode properties = told.putObject("properties");
        for (String name : sorted(letter.getPropertyNames())) {
            properties.set(name, Values.tell(letter.getObjectProperty(name)));
        }
        return tellBody(letter, told);
    }

    private static ObjectNode tellBody(ActiveMQMessage letter, ObjectNode told) throws JMSException {
        ObjectNode body = Main.JSON.createObjectNode();
        byte[] content = null;
        if (letter instanceof TextMessage text) {
            body.put("text", text.getText());
            content = text.getText() == null ? null : text.getText().getBytes(StandardCharsets.UTF_8);
        } else if (letter instanceof ActiveMQBytesMessage bytes) {
            bytes.reset();
            content = new byte[Math.toIntExact(bytes.getBodyLength())];
            bytes.readBytes(content);
            body.put("bytes", content.length > LONGEST_SHOWN ? "" : HexFormat.of().formatHex(content));
        } else if (letter instanceof MapMessage map) {
            ObjectNode entries = body.putObject("map");
            for (String name : sorted(map.getMapNames())) {
                entries.set(name, Values.tell(map.getObject(name)));
            }
        } else if (letter instanceof ActiveMQStreamMessage stream) {
            tellStream(stream, body.putArray("stream"));
        } else if (letter instanceof ActiveMQObjectMessage object) {
            // The one that is sent does not know yet whom its connection trusts.
            object.setTrustAllPackages(true);
            body.set("object", Values.tell(object.getObject()));
        } else {
            told.put("body", "plain");
        }
        if (content == null) {
            content = body.toString().getBytes(StandardCharsets.UTF_8);
        }
        if (content.length > LONGEST_SHOWN) {
            told.putObject("body").put("large", content.length);
        } else if (!body.isEmpty()) {
            told.set("body", body);
        }
        return told.put("length", content.length).put("digest", digest(content));
    }

    private static void tellStream(ActiveMQStreamMessage stream, ArrayNode values) throws JMSException {
        stream.reset();
        try {
            while (true) {
                values.add(Values.tell(stream.readObject()));
            }
        } catch (MessageEOFException end) {
            // A stream does not tell its length: that is how it ends.
        }
    }

    private static Iterable<String> sorted(Enumeration<?> names) {
        return Collections.list(names).stream().map(Object::toString).sorted().toList();
    }

    private static String digest(byte[] content) {
        try {
            return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(content));
        } catch (NoSuchAlgorithmException absent) {
            throw new IllegalStateException(absent);
        }
    }
}
