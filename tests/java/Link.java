import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.ArrayDeque;
import java.util.Deque;
import javax.jms.ExceptionListener;
import javax.jms.JMSException;
import javax.net.ssl.TrustManager;
import javax.net.ssl.TrustManagerFactory;
import org.apache.activemq.ActiveMQConnection;
import org.apache.activemq.ActiveMQSslConnectionFactory;
import org.apache.activemq.transport.TransportListener;

/**
 * One connection of the stock client, as any application makes it: what is special is in its URI.
 * Keeps what it was told without having asked: exceptions, and failover's interruptions.
 */
final class Link implements ExceptionListener, TransportListener {
    /** A connection that is told more than that keeps the newest. */
    private static final int MOST_TOLD = 1000;

    final ActiveMQConnection connection;
    private final Deque<JsonNode> told = new ArrayDeque<>();

    /**
     * Connects and starts: {@code uri}, and where given {@code user}, {@code password}, {@code client_id},
     * {@code authority} (a PEM file of whom to trust).
     */
    Link(JsonNode settings) throws Exception {
        ActiveMQSslConnectionFactory factory = new ActiveMQSslConnectionFactory(settings.get("uri").asText());
        factory.setTrustAllPackages(true);
        factory.setUserName(settings.path("user").asText(null));
        factory.setPassword(settings.path("password").asText(null));
        factory.setClientID(settings.path("client_id").asText(null));
        if (settings.hasNonNull("authority")) {
            factory.setKeyAndTrustManagers(null, trust(Path.of(settings.get("authority").asText())), null);
        }
        factory.setExceptionListener(this);
        factory.setTransportListener(this);
        connection = (ActiveMQConnection) factory.createConnection();
        try {
            connection.start();
        } catch (JMSException refused) {
            connection.close();
            throw refused;
        }
    }

    JsonNode told() {
        ArrayNode all = Main.JSON.createArrayNode();
        synchronized (told) {
            all.addAll(told);
        }
        return all;
    }

    @Override
    public void onException(JMSException exception) {
        keep(Main.refusal(exception));
    }

    @Override
    public void onException(IOException exception) {
        keep(Main.refusal(exception));
    }

    @Override
    public void onCommand(Object command) {
        // The connection has its own listener for these.
    }

    @Override
    public void transportInterupted() {
        keep(Main.JSON.createObjectNode().put("class", "interrupted").put("message", ""));
    }

    @Override
    public void transportResumed() {
        keep(Main.JSON.createObjectNode().put("class", "resumed").put("message", ""));
    }

    private void keep(JsonNode event) {
        synchronized (told) {
            if (told.size() == MOST_TOLD) {
                told.removeFirst();
            }
            told.addLast(event);
        }
    }

    private static TrustManager[] trust(Path authority) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null);
        try (InputStream pem = Files.newInputStream(authority)) {
            store.setCertificateEntry("authority", CertificateFactory.getInstance("X.509").generateCertificate(pem));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        return trust.getTrustManagers();
    }
}
