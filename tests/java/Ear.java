import com.fasterxml.jackson.databind.JsonNode;
import java.util.ArrayList;
import java.util.List;
import javax.jms.JMSException;
import javax.jms.Message;
import javax.jms.MessageListener;

/** A listener that remembers what it was given, and throws at the first few deliveries if asked to. */
final class Ear implements MessageListener {
    /** It listens to no more than that. */
    private static final int MOST_HEARD = 10_000;

    private final List<JsonNode> heard = new ArrayList<>();
    private int refusals;

    Ear(int refusals) {
        this.refusals = refusals;
    }

    @Override
    public synchronized void onMessage(Message message) {
        if (heard.size() == MOST_HEARD) {
            throw new IllegalStateException("heard " + MOST_HEARD + " messages");
        }
        try {
            heard.add(Letter.describe(message));
        } catch (JMSException unreadable) {
            throw new IllegalStateException(unreadable);
        }
        if (refusals > 0) {
            refusals--;
            throw new IllegalStateException("refused, as it was asked to");
        }
    }

    synchronized JsonNode heard() {
        return Main.JSON.createArrayNode().addAll(heard);
    }
}
