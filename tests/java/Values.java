import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.fasterxml.jackson.databind.node.TextNode;
import java.math.BigInteger;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/**
 * A value with its type, as JSON: {@code {"int": 5}}, or {@code "null"}. Floating numbers travel as
 * their bits and bytes as hexadecimal digits, so that nothing is rounded on the way.
 */
final class Values {
    private Values() {}

    static Object read(JsonNode typed) {
        if (typed.isTextual()) {
            return null;
        }
        Map.Entry<String, JsonNode> only = typed.fields().next();
        JsonNode value = only.getValue();
        switch (only.getKey()) {
            case "boolean":
                return value.asBoolean();
            case "byte":
                return (byte) value.asInt();
            case "short":
                return (short) value.asInt();
            case "char":
                return value.asText().charAt(0);
            case "int":
                return value.asInt();
            case "long":
                return value.asLong();
            case "float":
                return Float.intBitsToFloat((int) value.asLong());
            case "double":
                return Double.longBitsToDouble(value.bigIntegerValue().longValue());
            case "string":
                return value.asText();
            case "bytes":
                return HexFormat.of().parseHex(value.asText());
            case "list":
                List<Object> list = new ArrayList<>();
                value.forEach(item -> list.add(read(item)));
                return list;
            case "map":
                Map<String, Object> map = new HashMap<>();
                fields(value).forEach(entry -> map.put(entry.getKey(), read(entry.getValue())));
                return map;
            default:
                throw new IllegalArgumentException("no such type: " + only.getKey());
        }
    }

    static JsonNode tell(Object value) {
        if (value == null) {
            return TextNode.valueOf("null");
        }
        ObjectNode told = Main.JSON.createObjectNode();
        if (value instanceof Boolean is) {
            told.put("boolean", is);
        } else if (value instanceof Byte number) {
            told.put("byte", number.intValue());
        } else if (value instanceof Short number) {
            told.put("short", number.intValue());
        } else if (value instanceof Character letter) {
            told.put("char", letter.toString());
        } else if (value instanceof Integer number) {
            told.put("int", number);
        } else if (value instanceof Long number) {
            told.put("long", number);
        } else if (value instanceof Float number) {
            told.put("float", Integer.toUnsignedLong(Float.floatToRawIntBits(number)));
        } else if (value instanceof Double number) {
            told.put("double", new BigInteger(Long.toUnsignedString(Double.doubleToRawLongBits(number))));
        } else if (value instanceof byte[] bytes) {
            told.put("bytes", HexFormat.of().formatHex(bytes));
        } else if (value instanceof List<?> list) {
            ArrayNode items = told.putArray("list");
            list.forEach(item -> items.add(tell(item)));
        } else if (value instanceof Map<?, ?> map) {
            ObjectNode entries = told.putObject("map");
            new TreeMap<>(map).forEach((name, item) -> entries.set((String) name, tell(item)));
        } else {
            told.put("string", value.toString());
        }
        return told;
    }

    static Iterable<Map.Entry<String, JsonNode>> fields(JsonNode object) {
        return object::fields;
    }
}
