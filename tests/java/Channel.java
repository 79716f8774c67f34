import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.IntNode;
import com.fasterxml.jackson.databind.node.NullNode;
import com.fasterxml.jackson.databind.node.TextNode;
import java.util.Enumeration;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import javax.jms.DeliveryMode;
import javax.jms.JMSException;
import javax.jms.Message;
import javax.jms.MessageConsumer;
import javax.jms.MessageProducer;
import javax.jms.Queue;
import javax.jms.QueueBrowser;
import javax.jms.Session;
import javax.jms.Topic;
import org.apache.activemq.ActiveMQConnection;
import org.apache.activemq.ActiveMQSession;
import org.apache.activemq.command.ActiveMQDestination;
import org.apache.activemq.command.ActiveMQTempDestination;

/** One session with its consumers, on a thread of its own, and what can be asked of it. */
final class Channel {
    /** So many messages may be received and not acknowledged. */
    private static final int MOST_HELD = 100_000;

    final ExecutorService thread = Executors.newSingleThreadExecutor();
    private final ActiveMQConnection connection;
    private final ActiveMQSession session;
    private final MessageProducer producer;
    private final boolean acknowledges;
    private final Map<Integer, MessageConsumer> consumers = new HashMap<>();
    private final Map<Integer, Ear> ears = new HashMap<>();
    private final Map<Integer, QueueBrowser> browsers = new HashMap<>();
    private final Map<Integer, Enumeration<?>> browsed = new HashMap<>();
    /** Received and not acknowledged, in that order. */
    private final Map<String, Message> held = new LinkedHashMap<>();
    private int last;

    Channel(ActiveMQConnection connection, String mode) throws JMSException {
        this.connection = connection;
        session = (ActiveMQSession) connection.createSession(mode.equals("transacted"), number(mode));
        producer = session.createProducer(null);
        acknowledges = mode.equals("client") || mode.equals("individual");
    }

    static int number(String mode) {
        return switch (mode) {
            case "auto" -> Session.AUTO_ACKNOWLEDGE;
            case "client" -> Session.CLIENT_ACKNOWLEDGE;
            case "dups_ok" -> Session.DUPS_OK_ACKNOWLEDGE;
            case "individual" -> ActiveMQSession.INDIVIDUAL_ACKNOWLEDGE;
            case "transacted" -> Session.SESSION_TRANSACTED;
            default -> throw new IllegalArgumentException("no acknowledge mode: " + mode);
        };
    }

    /** {@code queue://A}, {@code topic://A}, {@code temp-queue://ID:…}, or the bare name of a queue. */
    static ActiveMQDestination destination(JsonNode command) {
        return ActiveMQDestination.createDestination(
                command.get("destination").asText(), ActiveMQDestination.QUEUE_TYPE);
    }

    JsonNode run(JsonNode command) throws Exception {
        switch (command.get("op").asText()) {
            case "send":
                return send(command);
            case "consumer":
                return consumer(command);
            case "receive":
                return receive(command);
            case "listen":
                Ear ear = new Ear(command.get("refusals").asInt());
                ears.put(command.get("consumer").asInt(), ear);
                consumers.get(command.get("consumer").asInt()).setMessageListener(ear);
                return NullNode.instance;
            case "heard":
                return ears.get(command.get("consumer").asInt()).heard();
            case "close_consumer":
                ears.remove(command.get("consumer").asInt());
                consumers.remove(command.get("consumer").asInt()).close();
                return NullNode.instance;
            case "acknowledge":
                return acknowledge(command.get("message").asText());
            case "recover":
                held.clear();
                session.recover();
                return NullNode.instance;
            case "commit":
                session.commit();
                return NullNode.instance;
            case "rollback":
                session.rollback();
                return NullNode.instance;
            case "browse":
                return browse(command);
            case "open_browser":
                QueueBrowser browser = session.createBrowser((Queue) destination(command));
                browsers.put(++last, browser);
                browsed.put(last, browser.getEnumeration());
                return IntNode.valueOf(last);
            case "next_browsed":
                Enumeration<?> messages = browsed.get(command.get("browser").asInt());
                return messages.hasMoreElements()
                        ? Letter.describe((Message) messages.nextElement())
                        : NullNode.instance;
            case "close_browser":
                browsed.remove(command.get("browser").asInt());
                browsers.remove(command.get("browser").asInt()).close();
                return NullNode.instance;
            case "temporary_queue":
                return TextNode.valueOf(qualified(session.createTemporaryQueue()));
            case "delete_temporary":
                connection.deleteTempDestination((ActiveMQTempDestination) destination(command));
                return NullNode.instance;
            case "unsubscribe":
                session.unsubscribe(command.get("name").asText());
                return NullNode.instance;
            default:
                throw new IllegalArgumentException("no such command: " + command);
        }
    }

    void end() throws JMSException {
        session.close();
        thread.shutdown();
    }

    static String qualified(Object destination) {
        return destination == null ? null : ((ActiveMQDestination) destination).getQualifiedName();
    }

    /** Tells what was sent, in the words in which a receiver tells what arrived. */
    private JsonNode send(JsonNode command) throws JMSException {
        Message message = Letter.write(session, command.get("message"));
        producer.send(
                destination(command),
                message,
                command.get("persistent").asBoolean() ? DeliveryMode.PERSISTENT : DeliveryMode.NON_PERSISTENT,
                command.get("priority").asInt(),
                command.get("time_to_live").asLong());
        return Letter.describe(message);
    }

    private JsonNode consumer(JsonNode command) throws JMSException {
        ActiveMQDestination destination = destination(command);
        String selector = command.path("selector").asText(null);
        MessageConsumer consumer = command.hasNonNull("durable")
                ? session.createDurableSubscriber(
                        (Topic) destination, command.get("durable").asText(), selector, false)
                : session.createConsumer(destination, selector);
        consumers.put(++last, consumer);
        return IntNode.valueOf(last);
    }

    private JsonNode receive(JsonNode command) throws JMSException {
        MessageConsumer consumer = consumers.get(command.get("consumer").asInt());
        long within = command.get("within").asLong();
        // Zero would wait for ever.
        Message message = within == 0 ? consumer.receiveNoWait() : consumer.receive(within);
        if (message == null) {
            return NullNode.instance;
        }
        if (acknowledges) {
            if (held.size() == MOST_HELD) {
                throw new IllegalStateException("nothing was acknowledged for " + MOST_HELD + " messages");
            }
            held.put(message.getJMSMessageID(), message);
        }
        return Letter.describe(message);
    }

    private JsonNode acknowledge(String id) throws JMSException {
        Message message = held.remove(id);
        if (message == null) {
            throw new IllegalArgumentException("not received here, or acknowledged: " + id);
        }
        message.acknowledge();
        if (session.getAcknowledgeMode() == Session.CLIENT_ACKNOWLEDGE) {
            held.clear();
        }
        return NullNode.instance;
    }

    private JsonNode browse(JsonNode command) throws JMSException {
        ArrayNode seen = Main.JSON.createArrayNode();
        int most = command.get("most").asInt();
        QueueBrowser browser =
                session.createBrowser((Queue) destination(command), command.path("selector").asText(null));
        try {
            Enumeration<?> messages = browser.getEnumeration();
            while (seen.size() < most && messages.hasMoreElements()) {
                seen.add(Letter.describe((Message) messages.nextElement()));
            }
        } finally {
            browser.close();
        }
        return seen;
    }
}
