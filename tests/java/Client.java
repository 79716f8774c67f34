import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.IntNode;
import com.fasterxml.jackson.databind.node.NullNode;
import com.fasterxml.jackson.databind.node.TextNode;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executor;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * All that is open, by its number: connections, sessions, loads. Finds what a command is for, and
 * the thread it must run on: a JMS session belongs to one thread.
 */
final class Client {
    private final AtomicInteger last = new AtomicInteger();
    private final Map<Integer, Link> links = new ConcurrentHashMap<>();
    private final Map<Integer, Channel> channels = new ConcurrentHashMap<>();
    private final Map<Integer, Load> loads = new ConcurrentHashMap<>();
    private final ExecutorService pool = Executors.newCachedThreadPool();

    Executor threadOf(JsonNode command) {
        Channel channel = channels.get(command.path("session").asInt());
        return channel == null ? pool : channel.thread;
    }

    JsonNode run(JsonNode command) throws Exception {
        switch (command.get("op").asText()) {
            case "connect":
                return keep(links, new Link(command));
            case "start":
                link(command).connection.start();
                return NullNode.instance;
            case "stop":
                link(command).connection.stop();
                return NullNode.instance;
            case "broker":
                return TextNode.valueOf(link(command).connection.getBrokerName());
            case "told":
                return link(command).told();
            case "disconnect":
                link(command).connection.close();
                links.remove(command.get("connection").asInt());
                return NullNode.instance;
            case "session":
                return keep(channels, new Channel(link(command).connection, command.get("mode").asText()));
            case "end":
                channel(command).end();
                channels.remove(command.get("session").asInt());
                return NullNode.instance;
            case "load":
                return keep(loads, new Load(command));
            case "load_state":
                return load(command).state();
            case "load_wait":
                return load(command).await();
            case "load_stop":
                load(command).stop();
                return load(command).await();
            default:
                return channel(command).run(command);
        }
    }

    private <T> JsonNode keep(Map<Integer, T> among, T opened) {
        int number = last.incrementAndGet();
        among.put(number, opened);
        return IntNode.valueOf(number);
    }

    private Link link(JsonNode command) {
        return known(links, command, "connection");
    }

    private Channel channel(JsonNode command) {
        return known(channels, command, "session");
    }

    private Load load(JsonNode command) {
        return known(loads, command, "load");
    }

    private static <T> T known(Map<Integer, T> among, JsonNode command, String kind) {
        T found = among.get(command.path(kind).asInt());
        if (found == null) {
            throw new IllegalStateException("no such " + kind + ": " + command);
        }
        return found;
    }
}
