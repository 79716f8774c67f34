import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;

/**
 * A JMS client for the harness: reads commands on standard input, one JSON object a line, and
 * answers each with one line on standard output, in the order in which they are done. Knows the
 * lines and nothing of JMS; what a command does stands in {@link Client}.
 *
 * <p>A command is {@code {"id": 1, "op": "send", …}}; its answer {@code {"id": 1, "done": …}} or
 * {@code {"id": 1, "refused": {"class": …, "message": …, "cause": …}}}.
 */
public final class Main {
    static final ObjectMapper JSON = new ObjectMapper();

    private Main() {}

    public static void main(String[] arguments) throws IOException {
        PrintStream answers = new PrintStream(new FileOutputStream(FileDescriptor.out), false, StandardCharsets.UTF_8);
        BufferedReader commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        Client client = new Client();
        for (String line = commands.readLine(); line != null; line = commands.readLine()) {
            JsonNode command = JSON.readTree(line);
            client.threadOf(command).execute(() -> answer(client, command, answers));
        }
        // Whoever gave the commands is gone: nothing is to be ended in order.
        Runtime.getRuntime().halt(0);
    }

    private static void answer(Client client, JsonNode command, PrintStream answers) {
        ObjectNode answer = JSON.createObjectNode().put("id", command.get("id").asLong());
        try {
            answer.set("done", client.run(command));
        } catch (Throwable thrown) {
            answer.set("refused", refusal(thrown));
        }
        synchronized (answers) {
            answers.println(answer);
            answers.flush();
        }
    }

    /** An exception as the harness reads it: its class, its text, and the same of its cause. */
    static ObjectNode refusal(Throwable thrown) {
        Throwable cause = thrown.getCause();
        return JSON.createObjectNode()
                .put("class", thrown.getClass().getName())
                .put("message", String.valueOf(thrown.getMessage()))
                .put("cause", cause == null ? null : cause.toString());
    }
}
