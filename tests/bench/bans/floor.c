/* What this machine allows at all: the least that can stand between a written line and the kernel's
 * firewall. One thread, one file, no pattern, no counting, no list of who may never be banned, no
 * store, and privileged itself: it wakes by inotify, takes what stands before the first blank for an
 * IPv4 address and enters it into a set. A measuring stick, not an example. Follows inotify(7),
 * netlink(7) and linux/netfilter/nf_tables.h.
 *
 *   floor LOG TABLE SET    says `ready`, then runs until it is killed
 */
#include <arpa/inet.h>
#include <endian.h>
#include <fcntl.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <unistd.h>

static char batch[1024];
static size_t filled;
static uint32_t sequence;

static struct nlmsghdr *message(uint16_t type, uint16_t flags, uint8_t family, uint16_t resource) {
    struct nlmsghdr *head = (struct nlmsghdr *)(batch + filled);
    *head = (struct nlmsghdr){0, type, NLM_F_REQUEST | flags, ++sequence, 0};
    *(struct nfgenmsg *)NLMSG_DATA(head) = (struct nfgenmsg){family, NFNETLINK_V0, htons(resource)};
    filled += NLMSG_SPACE(sizeof(struct nfgenmsg));
    return head;
}

static struct nlattr *attribute(uint16_t type, const void *data, size_t length) {
    struct nlattr *made = (struct nlattr *)(batch + filled);
    *made = (struct nlattr){NLA_HDRLEN + length, type};
    memset(made + 1, 0, NLA_ALIGN(length));
    memcpy(made + 1, data, length);
    filled += NLA_HDRLEN + NLA_ALIGN(length);
    return made;
}

static void close_nest(struct nlattr *nest) { nest->nla_len = batch + filled - (char *)nest; }

static void close_message(struct nlmsghdr *head) { head->nlmsg_len = batch + filled - (char *)head; }

static int enter(int kernel, const char *table, const char *set, struct in_addr address) {
    const uint64_t lasting = htobe64(600000);
    filled = 0;
    close_message(message(NFNL_MSG_BATCH_BEGIN, 0, AF_UNSPEC, NFNL_SUBSYS_NFTABLES));
    struct nlmsghdr *element = message(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWSETELEM,
                                       NLM_F_CREATE | NLM_F_ACK, NFPROTO_INET, 0);
    attribute(NFTA_SET_ELEM_LIST_TABLE, table, strlen(table) + 1);
    attribute(NFTA_SET_ELEM_LIST_SET, set, strlen(set) + 1);
    struct nlattr *list = attribute(NLA_F_NESTED | NFTA_SET_ELEM_LIST_ELEMENTS, "", 0);
    struct nlattr *one = attribute(NLA_F_NESTED | NFTA_LIST_ELEM, "", 0);
    struct nlattr *key = attribute(NLA_F_NESTED | NFTA_SET_ELEM_KEY, "", 0);
    attribute(NFTA_DATA_VALUE, &address, sizeof address);
    close_nest(key);
    attribute(NFTA_SET_ELEM_TIMEOUT, &lasting, sizeof lasting);
    close_nest(one);
    close_nest(list);
    close_message(element);
    close_message(message(NFNL_MSG_BATCH_END, 0, AF_UNSPEC, NFNL_SUBSYS_NFTABLES));
    if (send(kernel, batch, filled, 0) < 0) return -1;
    static char answer[8192] __attribute__((aligned(8)));
    if (recv(kernel, answer, sizeof answer, 0) < (ssize_t)NLMSG_SPACE(sizeof(struct nlmsgerr))) return -1;
    const struct nlmsghdr *head = (struct nlmsghdr *)answer;
    return head->nlmsg_type == NLMSG_ERROR ? ((struct nlmsgerr *)NLMSG_DATA(head))->error : -1;
}

int main(int count, char **words) {
    if (count != 4) return fputs("usage: floor LOG TABLE SET\n", stderr), 2;
    const int ear = inotify_init1(IN_CLOEXEC);
    const int log = open(words[1], O_RDONLY | O_CLOEXEC);
    const int kernel = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
    if (ear < 0 || log < 0 || kernel < 0 || inotify_add_watch(ear, words[1], IN_MODIFY) < 0)
        return perror("floor"), 1;
    off_t read_to = lseek(log, 0, SEEK_END);
    static char events[4096], lines[65536];
    puts("ready");
    fflush(stdout);
    while (read(ear, events, sizeof events) > 0) {
        const ssize_t length = pread(log, lines, sizeof lines - 1, read_to);
        if (length <= 0) continue;
        lines[length] = '\0';
        read_to += length;
        for (char *line = lines; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
            struct in_addr address;
            line[strcspn(line, " ")] = '\0';
            if (inet_aton(line, &address) && enter(kernel, words[2], words[3], address) != 0)
                return fputs("floor: the kernel refuses an address\n", stderr), 1;
            line += strlen(line) + 1;
        }
    }
    return perror("floor"), 1;
}
