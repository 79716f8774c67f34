import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import javax.jms.BytesMessage;
import javax.jms.DeliveryMode;
import javax.jms.JMSException;
import javax.jms.Message;
import javax.jms.MessageConsumer;
import javax.jms.MessageProducer;
import javax.jms.Session;

/**
 * Many messages over several connections, one thread each: {@code kind} is {@code send} or
 * {@code receive}. What the broker has taken, or given, is written to {@code file} one flushed line
 * each, so that it can be counted after this process was killed. With {@code batch} above zero
 * sessions are transacted, and lines are written once the commit is known.
 */
final class Load {
    /** The message's own properties: who sent it, and its number there. */
    private static final String PRODUCER = "producer";
    private static final String NUMBER = "number";
    /** How often a receiver that gets nothing looks whether it is to end, in milliseconds. */
    private static final long LOOK = 200;

    private final JsonNode settings;
    private final int batch;
    private final long messages;
    private final long idle;
    private final PrintStream file;
    private final List<Link> links = new ArrayList<>();
    private final CountDownLatch done;
    private final AtomicLong count = new AtomicLong();
    private final List<JsonNode> errors = new ArrayList<>();
    private long first;
    private long last;
    private volatile boolean stopped;

    /** Connects, subscribes, and begins. */
    Load(JsonNode settings) throws Exception {
        this.settings = settings;
        batch = settings.get("batch").asInt();
        messages = settings.get("messages").asLong();
        idle = TimeUnit.MILLISECONDS.toNanos(settings.get("idle").asLong());
        file = settings.hasNonNull("file")
                ? new PrintStream(settings.get("file").asText(), StandardCharsets.UTF_8)
                : null;
        int connections = settings.get("connections").asInt();
        done = new CountDownLatch(connections);
        List<Thread> threads = new ArrayList<>();
        try {
            for (int place = 0; place < connections; place++) {
                Session session = session();
                boolean sends = settings.get("kind").asText().equals("send");
                threads.add(sends ? sender(place, session) : receiver(place, session));
            }
        } catch (Exception refused) {
            close();
            throw refused;
        }
        last = System.nanoTime();
        threads.forEach(Thread::start);
    }

    void stop() {
        stopped = true;
    }

    /** Waits until every connection is through, and closes them. */
    JsonNode await() throws Exception {
        done.await();
        close();
        return state();
    }

    /** How far it is. The time runs from the first message to the last. */
    synchronized JsonNode state() {
        ArrayNode told = Main.JSON.createArrayNode().addAll(errors);
        double seconds = first == 0 ? 0 : (last - first) / 1e9;
        return Main.JSON.createObjectNode()
                .put("done", done.getCount() == 0)
                .put("messages", count.get())
                .put("seconds", seconds)
                .set("errors", told);
    }

    private Session session() throws Exception {
        Link link = new Link(settings);
        links.add(link);
        return link.connection.createSession(
                batch > 0, batch > 0 ? Session.SESSION_TRANSACTED : Session.AUTO_ACKNOWLEDGE);
    }

    private void close() throws JMSException {
        for (Link link : links) {
            link.connection.close();
        }
        if (file != null) {
            file.close();
        }
    }

    private Thread sender(int place, Session session) throws JMSException {
        MessageProducer producer = session.createProducer(Channel.destination(settings));
        producer.setDeliveryMode(
                settings.get("persistent").asBoolean() ? DeliveryMode.PERSISTENT : DeliveryMode.NON_PERSISTENT);
        String name = settings.get("name").asText() + place;
        byte[] content = Letter.fill(settings.get("bytes").asInt());
        int connections = settings.get("connections").asInt();
        long own = messages / connections + (place < messages % connections ? 1 : 0);
        return new Thread(() -> through(() -> {
            begin();
            List<String> open = new ArrayList<>();
            for (long number = 0; number < own && !stopped; number++) {
                BytesMessage message = session.createBytesMessage();
                message.writeBytes(content);
                message.setStringProperty(PRODUCER, name);
                message.setLongProperty(NUMBER, number);
                producer.send(message);
                open.add(name + "\t" + number);
                settle(session, open, number + 1 == own || stopped);
            }
            settle(session, open, true);
        }));
    }

    private Thread receiver(int place, Session session) throws JMSException {
        MessageConsumer consumer = session.createConsumer(Channel.destination(settings));
        return new Thread(() -> through(() -> {
            List<String> open = new ArrayList<>();
            while (!stopped && count.get() < messages) {
                Message message = consumer.receive(LOOK);
                if (message == null) {
                    settle(session, open, true);
                    if (isIdle()) {
                        break;
                    }
                    continue;
                }
                begin();
                open.add(place + "\t" + message.getStringProperty(PRODUCER) + "\t" + message.getLongProperty(NUMBER)
                        + "\t" + message.getJMSRedelivered());
                settle(session, open, count.get() + open.size() >= messages);
            }
            settle(session, open, true);
        }));
    }

    /** Commits a batch that is full, or the last one, and writes down what is certain now. */
    private void settle(Session session, List<String> open, boolean all) throws JMSException {
        if (open.isEmpty() || (open.size() < batch && !all)) {
            return;
        }
        if (batch > 0) {
            session.commit();
        }
        if (file != null) {
            synchronized (file) {
                open.forEach(line -> file.print(line + "\n"));
                file.flush();
            }
        }
        count.addAndGet(open.size());
        open.clear();
        synchronized (this) {
            last = System.nanoTime();
        }
    }

    private synchronized void begin() {
        if (first == 0) {
            first = System.nanoTime();
        }
    }

    private synchronized boolean isIdle() {
        return System.nanoTime() - last > idle;
    }

    private interface Work {
        void run() throws JMSException, IOException;
    }

    private void through(Work work) {
        try {
            work.run();
        } catch (Exception exception) {
            synchronized (this) {
                errors.add(Main.refusal(exception));
            }
        } finally {
            done.countDown();
        }
    }
}
